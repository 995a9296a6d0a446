
-- ---------------------------------------------------------------------------------------------------- $kernel
-- One row per $kernel filter; w is the kernel row by row.
-- Example: SELECT model_id, layer, out_channel, in_channel, list_transform(w[:3], lambda x: round(x, 3)) AS top_row FROM filters_$kernel LIMIT 3
CREATE OR REPLACE VIEW filters_$kernel AS
SELECT model_id, layer, out_channel, in_channel, $columns,
       CAST([$columns] AS FLOAT[$size]) AS w
FROM $filters
SEMI JOIN models USING ($key);
