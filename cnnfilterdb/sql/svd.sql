
-- The nine SVD coefficients of a 3x3 kernel in the basis $basis_id.
CREATE OR REPLACE MACRO svd_coefficients(w) AS CAST([
    $coefficients
] AS DOUBLE[9]);
