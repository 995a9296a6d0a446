
-- The `top` $kernel filters most similar to `pattern`, a list of weights row by row. Similarity is the cosine, so a
-- positive factor does not matter; with `sign`, no factor does; with `centred`, nor does an added constant. For rotations
-- and reflections use db.nearest in Python.
-- Example: SELECT round(similarity, 3) AS similarity, model_id, layer, out_channel, in_channel FROM nearest_$kernel(list_transform(range($size), lambda i: i % 3 - 1.0), top := 3)
CREATE OR REPLACE MACRO nearest_$kernel(pattern, top := 10, sign := false, centred := false, "where" := true) AS TABLE
WITH query AS MATERIALIZED (
    SELECT CAST(list_transform(pattern, lambda x: x - CASE WHEN centred THEN list_avg(pattern) ELSE 0 END) AS DOUBLE[$size]) AS target
), filters AS (
    SELECT f.model_id, f.layer, f.out_channel, f.in_channel, f.w,
           CAST(CASE WHEN centred THEN list_transform(CAST(f.w AS DOUBLE[]), lambda x: x - list_avg(f.w::DOUBLE[]))
                     ELSE f.w::DOUBLE[] END AS DOUBLE[$size]) AS v
    FROM filters_$kernel AS f SEMI JOIN (SELECT facts.model_id, facts.layer FROM facts WHERE "where") USING (model_id, layer)
), measured AS (
    SELECT * EXCLUDE (v, target), array_cosine_similarity(v, target) AS cosine FROM filters, query
)
SELECT CASE WHEN sign THEN abs(cosine) ELSE cosine END AS similarity, * EXCLUDE (cosine)
FROM measured
WHERE isfinite(cosine) AND (NOT centred OR list_max(w) > list_min(w))
ORDER BY similarity DESC, model_id, layer, out_channel, in_channel
LIMIT (SELECT top);
