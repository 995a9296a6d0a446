
-- ------------------------------------------------------------------------------------------------------ lineage
-- Spectra of the stored layers: power-law tail, norm and rank of their matrices, and how heavy the tails of their weights
-- are. A convolution of h x w kernels is h w matrices (out, in / groups), as in WeightWatcher 0.7.7; the eigenvalues are
-- half the squares of the singular values of all of them together, and spectral_norm is the largest singular value. A layer
-- without fingerprints is an error.
-- Source: Martin, Peng and Mahoney, Nature Communications 12, 4122 (2021).
-- Example: SELECT model_id, round(avg(alpha), 2) AS alpha, round(avg(alpha_hat), 2) AS alpha_hat FROM spectra GROUP BY ALL ORDER BY ALL
CREATE OR REPLACE VIEW spectra AS
SELECT l.model_id, l.layer, l.layer_name, l.kernel, l.filters, f.alpha, f.alpha_ks,
       f.alpha * log10(f.lambda_max) AS alpha_hat, f.lambda_max, sqrt(2 * f.lambda_max) AS spectral_norm, f.stable_rank,
       f.kurtosis, f.peak_ratio
FROM layers AS l LEFT JOIN fingerprints AS f USING (model_id, layer, tensor_sha256)
WHERE l.stored AND CASE WHEN f.sketch IS NULL THEN error(
    'layer ' || l.layer || ' of ' || l.model_id || ' is not in the index fingerprints: run `cnnfilterdb index`') ELSE true END;

-- The sketch of each stored layer whose kernels differ, as a unit vector, and its place among the layers of its shape in its model: layers of
-- two models are compared if kernel, filters, out_channels and place are equal.
-- Example: SELECT model_id, kernel, filters, out_channels, place, round(norm, 2) AS norm FROM layer_sketches
CREATE OR REPLACE VIEW layer_sketches AS
SELECT * REPLACE (
           CAST(list_transform(sketch::FLOAT[], lambda x: x / sqrt(array_inner_product(sketch, sketch))) AS FLOAT[64])
           AS sketch
       )
FROM (
    SELECT l.model_id, l.layer, l.kernel, l.filters, coalesce(l.out_channels, 0) AS out_channels,
           row_number() OVER (
               PARTITION BY l.model_id, l.kernel, l.filters, l.out_channels ORDER BY l.layer
           ) AS place,
           f.centred_norm AS norm, CAST(f.sketch AS FLOAT[64]) AS sketch, f.kurtosis
    FROM layers AS l LEFT JOIN fingerprints AS f USING (model_id, layer, tensor_sha256)
    WHERE l.stored AND CASE WHEN f.sketch IS NULL THEN error(
        'layer ' || l.layer || ' of ' || l.model_id || ' is not in the index fingerprints: run `cnnfilterdb index`'
    ) ELSE true END
) WHERE norm > 0;

-- Pairs of models whose weights point in nearly the same direction: fine-tuned from one another, or both from a third.
-- Layers are paired by shape, in order. `cosine` is the cosine of all pairs together, estimated from sketches of 64 numbers
-- of the weights less the mean kernel of their layer; its standard error is 0.125 for one layer, and less for several.
-- Pairs are listed from 0.15 and five standard errors of chance on, which no unrelated models reach; models whose channels
-- were permuted are not found.
-- Source: Charikar, Chen and Farach-Colton, ICALP 2002 (sketches); Horwitz, Shul and Hoshen, arXiv 2405.18432 (cosines).
-- Example: FROM related_models
CREATE OR REPLACE VIEW related_models AS
WITH sketched AS MATERIALIZED (  -- used twice, and expensive
    SELECT model_id, kernel, filters, out_channels, place, norm, sketch FROM layer_sketches
), pairs AS (
    SELECT a.model_id AS model_a, b.model_id AS model_b, count(*) AS layers,
           sum(a.norm * b.norm * array_inner_product(a.sketch, b.sketch)) AS inner_product,
           sum(a.norm * a.norm) * sum(b.norm * b.norm) AS squares,
           sum(a.norm * a.norm * b.norm * b.norm
               * (1 / 64 + 1 / (greatest(a.filters - 1, 1) * kernel_weights(a.kernel)))) AS variance
    FROM sketched AS a JOIN sketched AS b USING (kernel, filters, out_channels, place)
    WHERE a.model_id < b.model_id
    GROUP BY ALL
)
SELECT model_a, model_b, least(inner_product / sqrt(squares), 1.0) AS cosine, layers
FROM pairs
WHERE inner_product / sqrt(squares) >= greatest(0.15, 5 * sqrt(variance / squares))
ORDER BY cosine DESC, model_a, model_b;
