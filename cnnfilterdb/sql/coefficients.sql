
-- SVD coefficients of the $kernel filters in the basis $basis_id.
CREATE OR REPLACE VIEW coefficients_$kernel AS
WITH peaks AS (
    SELECT model_id, layer, out_channel, in_channel, COLUMNS('^w\d+$$'),
           coalesce(nullif($peak, 0), 1) AS peak
    FROM filters_$kernel
), scaled AS (
    SELECT model_id, layer, out_channel, in_channel, $scaled FROM peaks
)
SELECT model_id, layer, out_channel, in_channel,
       $coefficients
FROM scaled;
