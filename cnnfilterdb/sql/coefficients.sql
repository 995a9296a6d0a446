
-- SVD coefficients of the $kernel filters in the current basis: components times (scaled filter - mean).
CREATE OR REPLACE VIEW coefficients_$kernel AS
WITH basis AS (
    SELECT list_transform(found, lambda row: row.component) AS components,
           list_transform(found, lambda row: row.offset) AS offsets
    FROM (SELECT basis_rows('$kernel') AS found)
), peaks AS (
    SELECT model_id, layer, out_channel, in_channel, COLUMNS('^w\d+$$'),
           coalesce(nullif($peak, 0), 1) AS peak
    FROM filters_$kernel
), filters AS (
    SELECT model_id, layer, out_channel, in_channel, [$scaled] AS scaled FROM peaks
)
SELECT model_id, layer, out_channel, in_channel,
       $coefficients
FROM filters, basis;
