-- ---------------------------------------------------------------------------------------------------- structure
-- Where weight `i` of a kernel of a size is taken from by one of its symmetries: 0 turns by 180 degrees, 1 swaps left and
-- right, 2 top and bottom; of square kernels also 3 and 4, which swap along the diagonals, and 5 and 6, turns by 90 degrees.
-- Example: SELECT turned_place(0, 1, '3x3') AS place
CREATE OR REPLACE MACRO turned_place(i, turn, kernel) AS CASE turn
    WHEN 0 THEN kernel_weights(kernel) - 1 - i
    WHEN 1 THEN i // kernel_width(kernel) * kernel_width(kernel) + kernel_width(kernel) - 1 - i % kernel_width(kernel)
    WHEN 2 THEN (kernel_height(kernel) - 1 - i // kernel_width(kernel)) * kernel_width(kernel) + i % kernel_width(kernel)
    WHEN 3 THEN i % kernel_width(kernel) * kernel_width(kernel) + i // kernel_width(kernel)
    WHEN 4 THEN (kernel_width(kernel) - 1 - i % kernel_width(kernel)) * kernel_width(kernel)
                + kernel_width(kernel) - 1 - i // kernel_width(kernel)
    WHEN 5 THEN i % kernel_width(kernel) * kernel_width(kernel) + kernel_width(kernel) - 1 - i // kernel_width(kernel)
    ELSE (kernel_width(kernel) - 1 - i % kernel_width(kernel)) * kernel_width(kernel) + i // kernel_width(kernel)
END;

-- Symmetry of the mean kernel, w, of a layer: 1 less half its mean distance from its reflections and turns, after scaling
-- to length 1. 1 if no symmetry changes it, about 0.4 for random numbers; NULL for zeros.
-- Source: arXiv 2503.19215
-- Example: SELECT model_id, layer, mean_symmetry(raw_mean, kernel := kernel) AS symmetry FROM layers WHERE stored
CREATE OR REPLACE MACRO mean_symmetry(w, kernel := '3x3') AS 1 - list_avg(list_transform(
    range(CASE WHEN kernel_height(kernel) = kernel_width(kernel) THEN 7 ELSE 3 END),
    lambda turn: sqrt(2 - 2 * clipped(list_sum(list_transform(
        range(kernel_weights(kernel)), lambda i: w[i + 1]::DOUBLE * w[turned_place(i, turn, kernel) + 1]
    )) / nullif(list_sum(list_transform(w, lambda x: x::DOUBLE * x)), 0), -1, 1))
)) / 2;

-- Mean over the layers of each group of the symmetry of their mean kernels. Layers that pad on one side only, such as many
-- with a stride of 2, are less symmetric.
-- Source: arXiv 2503.19215
-- Example: FROM mean_symmetries(domain)
CREATE OR REPLACE MACRO mean_symmetries("by", "where" := true, kernel := '3x3', all_layers := false) AS TABLE
SELECT "by" AS "group",
       count(DISTINCT facts.model_id) AS models,
       count(*) AS layers,
       CAST(sum(facts.filters) AS BIGINT) AS filters,
       avg(mean_symmetry(facts.raw_mean, kernel := kernel)) AS mean_symmetry
FROM facts
WHERE facts.stored AND facts.kernel = kernel AND "where" AND "by" IS NOT NULL AND (all_layers OR facts.papers_layer)
GROUP BY ALL ORDER BY ALL;

-- How the energy of the kernels of each group, their sum of squared weights, is distributed over positions: the mean over
-- layers of each position's share of the energy of the layer. Trained kernels have most of it at the centre and least in
-- the corners.
-- Source: arXiv 1908.03930
-- Example: FROM position_profile(domain)
CREATE OR REPLACE MACRO position_profile("by", "where" := true, kernel := '3x3', all_layers := false) AS TABLE
WITH squares AS (
    SELECT "by" AS "group", list_transform(
               range(kernel_weights(kernel)),
               lambda i: pow(facts.raw_mean[i + 1], 2) + facts.raw_variance[i + 1]
           ) AS energies
    FROM facts
    WHERE facts.stored AND facts.kernel = kernel AND "where" AND "by" IS NOT NULL AND (all_layers OR facts.papers_layer)
), placed AS (
    SELECT s."group", unnest(range(kernel_weights(kernel))) AS place,
           unnest(list_transform(s.energies, lambda e: e / list_sum(s.energies))) AS energy
    FROM squares AS s WHERE list_sum(s.energies) > 0
)
SELECT p."group", p.place // kernel_width(kernel) AS y, p.place % kernel_width(kernel) AS x, count(*) AS layers,
       avg(p.energy) AS energy,
       sqrt(avg(p.energy) / max(avg(p.energy)) OVER (PARTITION BY p."group")) AS relative
FROM placed AS p
GROUP BY p."group", p.place ORDER BY p."group", p.place;

-- Correlation of the weights of scaled kernels of each group by their distance, dy rows and dx columns apart: the mean over
-- all pairs of positions at that distance. About 0 for random kernels except at distance 0.
-- Source: arXiv 2102.06571
-- Example: FROM spatial_correlation(domain) WHERE dy + dx = 1
CREATE OR REPLACE MACRO spatial_correlation("by", "where" := true, kernel := '3x3', all_layers := false) AS TABLE
WITH chosen AS (
    SELECT "by" AS "group", facts.filters::DOUBLE AS n, facts.scaled_mean AS m, facts.scaled_scatter AS s
    FROM facts
    WHERE facts.stored AND facts.kernel = kernel AND "where" AND "by" IS NOT NULL AND (all_layers OR facts.papers_layer)
), entries AS (
    SELECT a.i AS i, b.i AS j,
           a.i * kernel_weights(kernel) - a.i * (a.i - 1) // 2 + b.i - a.i + 1 AS place
    FROM range(kernel_weights(kernel)) AS a(i), range(kernel_weights(kernel)) AS b(i)
    WHERE b.i >= a.i
), covariance AS (
    SELECT c."group", e.i, e.j,
           sum(c.s[e.place]) + sum(c.n * c.m[e.i + 1] * c.m[e.j + 1])
               - sum(c.n * c.m[e.i + 1]) * sum(c.n * c.m[e.j + 1]) / sum(c.n) AS c
    FROM chosen AS c, entries AS e
    GROUP BY ALL
)
SELECT v."group",
       v.j // kernel_width(kernel) - v.i // kernel_width(kernel) AS dy,
       abs(v.j % kernel_width(kernel) - v.i % kernel_width(kernel)) AS dx,
       avg(v.c / CASE WHEN a.c > 0 AND b.c > 0 THEN sqrt(a.c) * sqrt(b.c) END) AS correlation
FROM covariance AS v
JOIN covariance AS a ON a."group" = v."group" AND a.i = v.i AND a.j = v.i
JOIN covariance AS b ON b."group" = v."group" AND b.i = v.j AND b.j = v.j
GROUP BY ALL ORDER BY ALL;

-- The `weights` positions of a kernel, w, with the largest absolute weights, in ascending order and counted from 0: its
-- pattern in pattern pruning. Of equal weights the first counts.
-- Source: arXiv 1909.05073
-- Example: SELECT top_pattern(w) AS pattern, count(*) AS filters FROM filters_3x3 GROUP BY ALL ORDER BY filters DESC LIMIT 8
CREATE OR REPLACE MACRO top_pattern(w, weights := 4) AS list_sort(list_transform(
    list_slice(list_sort(list_transform(range(len(w)), lambda i: {'m': -abs(w[i + 1]), 'i': i})), 1, weights),
    lambda one: one.i
));

-- The centre of a kernel, w, by absolute weights, in pixels from its middle, to the right and downwards.
-- NULL for zeros. Uneven padding moves the centre.
-- Source: arXiv 2401.14469
-- Example: SELECT avg(centroid_x(w)) AS x FROM filters_3x3
CREATE OR REPLACE MACRO centroid_x(w, kernel := '3x3') AS
    list_sum(list_transform(range(len(w)), lambda i: abs(w[i + 1]::DOUBLE) * (i % kernel_width(kernel))))
    / nullif(list_sum(list_transform(w, lambda x: abs(x::DOUBLE))), 0) - (kernel_width(kernel) - 1) / 2;

-- The centre of a kernel, w, in the vertical direction; see centroid_x.
-- Source: arXiv 2401.14469
-- Example: SELECT avg(centroid_y(w)) AS y FROM filters_3x3
CREATE OR REPLACE MACRO centroid_y(w, kernel := '3x3') AS
    list_sum(list_transform(range(len(w)), lambda i: abs(w[i + 1]::DOUBLE) * (i // kernel_width(kernel))))
    / nullif(list_sum(list_transform(w, lambda x: abs(x::DOUBLE))), 0) - (kernel_height(kernel) - 1) / 2;

-- The spread of a kernel, w, in the horizontal direction: the variance of the position of its absolute weights.
-- Source: arXiv 2401.14469
-- Example: SELECT avg(spread_x(w)) AS x FROM filters_3x3
CREATE OR REPLACE MACRO spread_x(w, kernel := '3x3') AS
    list_sum(list_transform(range(len(w)), lambda i: abs(w[i + 1]::DOUBLE) * pow(i % kernel_width(kernel), 2)))
    / nullif(list_sum(list_transform(w, lambda x: abs(x::DOUBLE))), 0)
    - pow(centroid_x(w, kernel := kernel) + (kernel_width(kernel) - 1) / 2, 2);

-- The spread of a kernel, w, in the vertical direction; see spread_x.
-- Source: arXiv 2401.14469
-- Example: SELECT avg(spread_y(w)) AS y FROM filters_3x3
CREATE OR REPLACE MACRO spread_y(w, kernel := '3x3') AS
    list_sum(list_transform(range(len(w)), lambda i: abs(w[i + 1]::DOUBLE) * pow(i // kernel_width(kernel), 2)))
    / nullif(list_sum(list_transform(w, lambda x: abs(x::DOUBLE))), 0)
    - pow(centroid_y(w, kernel := kernel) + (kernel_height(kernel) - 1) / 2, 2);
