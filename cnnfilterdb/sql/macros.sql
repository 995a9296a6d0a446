
-- ------------------------------------------------------------------------------------------------ scalar macros
-- A kernel divided by its largest absolute weight; a kernel of zeros stays as it is.
CREATE OR REPLACE MACRO scale_filter(w) AS list_transform(
    w, lambda x: x / coalesce(nullif(greatest(list_max(w), -list_min(w)), 0), 1)
);

-- Aggregate, over the kernels of one layer: the share of those whose weights all lie below `threshold` times the layer's
-- largest. SELECT model_id, layer, sparsity(w) FROM filters_3x3 GROUP BY ALL
CREATE OR REPLACE MACRO sparsity(w, threshold := 0.01) AS
    list_avg(list_transform(
        list(greatest(list_max(w), -list_min(w))::DOUBLE),
        lambda peak: (peak < threshold * max(greatest(list_max(w), -list_min(w))::DOUBLE))::INTEGER
    ));

-- ------------------------------------------------------------------------------------------------- table macros
-- Arguments that several of them share:
--   by          any expression over the columns of `facts`; rows where it is NULL are left out
--   keep        a boolean expression that narrows the rows
--   kernel      kernel size
--   all_layers  true takes in transposed layers and layers that are never executed, which the papers never saw
--   recipe      'cvpr2022' (range of the basis, weights by explained variance) or 'medneurips2022' (-3..3, uniform)
--   balance     what counts the same within a group: 'filters', 'layers', 'models' or 'families'
--   basis       id of a basis; NULL is the newest of the kernel size

-- How many models, layers and filters each group holds.
CREATE OR REPLACE MACRO group_sizes("by", keep := true, kernel := '3x3', all_layers := false) AS TABLE
SELECT "by" AS "group",
       count(DISTINCT facts.model_id) AS models,
       count(*) AS layers,
       CAST(sum(facts.filters) AS BIGINT) AS filters
FROM facts
WHERE facts.stored AND facts.kernel = kernel AND keep AND "by" IS NOT NULL
  AND (all_layers OR (facts.kind IS DISTINCT FROM 'transposed' AND facts.dead IS NOT TRUE))
GROUP BY ALL ORDER BY ALL;

-- Quality of the kernels of each group: sparsity and entropies weighted by filters, orthogonality by output channels.
CREATE OR REPLACE MACRO filter_quality("by", keep := true, kernel := '3x3', all_layers := false) AS TABLE
SELECT "by" AS "group",
       count(DISTINCT facts.model_id) AS models,
       count(*) AS layers,
       CAST(sum(facts.filters) AS BIGINT) AS filters,
       sum(facts.sparsity * facts.filters) / sum(facts.filters) AS sparsity,
       sum(facts.variance_entropy * facts.filters)
           / sum(facts.filters) FILTER (facts.variance_entropy IS NOT NULL) AS variance_entropy,
       sum(facts.variance_entropy_clean * facts.filters)
           / sum(facts.filters) FILTER (facts.variance_entropy_clean IS NOT NULL) AS variance_entropy_clean,
       avg(facts.variance_entropy / facts.randomness_threshold)
           FILTER (facts.randomness_threshold > 0) AS normalised_entropy,
       avg((facts.variance_entropy >= facts.randomness_threshold)::INTEGER)
           FILTER (facts.randomness_threshold > 0) AS random_layers,
       sum(facts.orthogonality * facts.out_channels)
           / sum(facts.out_channels) FILTER (facts.orthogonality IS NOT NULL) AS orthogonality
FROM facts
WHERE facts.stored AND facts.kernel = kernel AND keep AND "by" IS NOT NULL
  AND (all_layers OR (facts.kind IS DISTINCT FROM 'transposed' AND facts.dead IS NOT TRUE))
GROUP BY ALL ORDER BY ALL;

-- The histograms of each group, summed (and balanced), with what went into them. Raises an error, never leaves out rows,
-- when a selected layer is not in the index.
CREATE OR REPLACE MACRO group_histograms(
    "by", keep := true, recipe := 'cvpr2022', balance := 'filters', kernel := '3x3', basis := NULL, all_layers := false
) AS TABLE
WITH chosen AS (
    SELECT bases.basis_id, bases.bins, bases.explained_variance_ratio
    FROM bases
    WHERE bases.kernel = kernel AND (basis IS NULL OR bases.basis_id = basis)
    ORDER BY bases.created_at DESC
    LIMIT 1
), selected AS (
    SELECT "by" AS "group", facts.model_id AS model_id, facts.layer AS layer, facts.filters AS filters,
           CASE balance
               WHEN 'filters' THEN ''
               WHEN 'layers' THEN facts.model_id || chr(10) || facts.layer
               WHEN 'models' THEN facts.model_id
               WHEN 'families' THEN coalesce(facts.family, facts.architecture, facts.model_id)
               ELSE error('balance: ''' || balance || ''' is none of filters, layers, models, families')
           END AS member
    FROM facts
    WHERE facts.stored AND facts.kernel = kernel AND keep AND "by" IS NOT NULL
      AND (all_layers OR (facts.kind IS DISTINCT FROM 'transposed' AND facts.dead IS NOT TRUE))
), weighted AS (
    SELECT *,
           CASE balance WHEN 'filters' THEN 1.0
                        ELSE 1.0 / sum(filters) OVER (PARTITION BY "group", member) END AS factor
    FROM selected
), rows AS (
    SELECT w."group", w.model_id, w.layer, w.filters, w.factor, w.member,
           CASE WHEN h.counts IS NULL
                THEN error('layer ' || w.layer || ' of ' || w.model_id || ' is not in the index'
                           || coalesce(' ' || (SELECT basis_id FROM chosen), '') || ': run `cnnfilterdb index`')
                ELSE h.counts END AS counts,
           h.below, h.above, h.low, h.high
    FROM weighted AS w LEFT JOIN (
        SELECT * FROM histograms AS inner_h
        WHERE inner_h.basis_id = (SELECT basis_id FROM chosen)
          AND inner_h.recipe = CASE WHEN recipe IN ('cvpr2022', 'medneurips2022') THEN recipe
                                    ELSE error('recipe: ''' || recipe || ''' is none of cvpr2022, medneurips2022') END
    ) AS h USING (model_id, layer)
), sizes AS (
    SELECT "group", count(DISTINCT model_id) AS models, count(*) AS layers, CAST(sum(filters) AS BIGINT) AS filters,
           count(DISTINCT member) AS members,
           CAST(sum(list_sum(below) + list_sum(above)) AS BIGINT) AS outside,
           any_value(low) AS low, any_value(high) AS high
    FROM rows GROUP BY ALL
), sums AS (
    SELECT "group", position, sum(count * factor) AS total
    FROM (
        SELECT "group", factor, unnest(counts) AS count, generate_subscripts(counts, 1) AS position FROM rows
    )
    GROUP BY ALL
), lists AS (
    SELECT "group", list(total ORDER BY position) AS counts FROM sums GROUP BY ALL
)
SELECT "group", models, layers, filters, members, outside, low, high,
       chosen.basis_id, chosen.bins,
       CASE recipe WHEN 'cvpr2022' THEN chosen.explained_variance_ratio
                   ELSE list_transform(chosen.explained_variance_ratio,
                                       lambda x: 1.0 / len(chosen.explained_variance_ratio)) END AS weights,
       counts
FROM lists JOIN sizes USING ("group"), chosen
ORDER BY "group";

-- Probabilities of each group, component by component, as the papers make them: density per bin, empty bins set to the
-- float32 machine epsilon, divided by the sum.
CREATE OR REPLACE MACRO group_probabilities(
    "by", keep := true, recipe := 'cvpr2022', balance := 'filters', kernel := '3x3', basis := NULL, all_layers := false
) AS TABLE
WITH groups AS (
    FROM group_histograms("by", keep := keep, recipe := recipe, balance := balance, kernel := kernel, basis := basis,
                          all_layers := all_layers)
), components AS (
    SELECT "group", component, weights[component + 1] AS weight, (high - low) / bins AS width,
           list_slice(counts, component * bins + 1, (component + 1) * bins) AS counts,
           models, filters, outside / (filters * len(weights)) AS outside, basis_id
    FROM (SELECT *, unnest(range(len(weights))) AS component FROM groups)
), densities AS (
    SELECT * EXCLUDE (counts, width),
           CASE WHEN list_sum(counts) = 0
                THEN error('group ' || "group" || ': no coefficient lies in the range of the recipe')
                ELSE list_transform(counts, lambda c: CASE WHEN c = 0 THEN 1.1920928955078125e-07
                                                           ELSE c / (list_sum(counts) * width) END)
           END AS density
    FROM components
)
SELECT "group", component, weight, list_transform(density, lambda d: d / list_sum(density)) AS p,
       models, filters, outside, basis_id
FROM densities
ORDER BY ALL;

-- Symmetric KL divergence, in nats, of the coefficient distributions of every two groups: one row per cell of the matrix.
-- Sum over bins of (p - q)(ln p - ln q), summed over components by weight, written as four inner products.
CREATE OR REPLACE MACRO kl_shift(
    "by", keep := true, recipe := 'cvpr2022', balance := 'filters', kernel := '3x3', basis := NULL, all_layers := false
) AS TABLE
WITH probabilities AS MATERIALIZED (
    FROM group_probabilities("by", keep := keep, recipe := recipe, balance := balance, kernel := kernel,
                             basis := basis, all_layers := all_layers)
), vectors AS MATERIALIZED (
    SELECT "group", any_value(models) AS models, any_value(filters) AS filters, any_value(outside) AS outside,
           any_value(basis_id) AS basis_id,
           flatten(list(list_transform(p, lambda x: weight * x) ORDER BY component)) AS p,
           flatten(list(list_transform(p, lambda x: ln(x)) ORDER BY component)) AS log_p
    FROM probabilities GROUP BY ALL
), limited AS (
    SELECT *, list_inner_product(p, log_p) AS own
    FROM vectors
    WHERE CASE WHEN (SELECT count(*) FROM vectors) > 2000
               THEN error((SELECT count(*) FROM vectors)
                          || ' groups: at most 2000 can be compared; group by something coarser')
               ELSE true END
)
SELECT a."group" AS group_a, b."group" AS group_b,
       CASE WHEN a."group" = b."group" THEN 0.0
            ELSE greatest(0.0, a.own + b.own - list_inner_product(a.p, b.log_p) - list_inner_product(b.p, a.log_p))
       END AS shift,
       a.models AS models_a, b.models AS models_b, a.filters AS filters_a, b.filters AS filters_b,
       a.outside AS outside_a, b.outside AS outside_b, a.basis_id AS basis_id
FROM limited AS a, limited AS b
ORDER BY group_a, group_b;

-- The same, one row per component: unweighted divergence, weight of the component, and their product.
CREATE OR REPLACE MACRO kl_shift_components(
    "by", keep := true, recipe := 'cvpr2022', balance := 'filters', kernel := '3x3', basis := NULL, all_layers := false
) AS TABLE
WITH probabilities AS MATERIALIZED (
    SELECT *, list_transform(p, lambda x: ln(x)) AS log_p
    FROM group_probabilities("by", keep := keep, recipe := recipe, balance := balance, kernel := kernel,
                             basis := basis, all_layers := all_layers)
), divergences AS (
    SELECT a."group" AS group_a, b."group" AS group_b, component, a.weight AS weight,
           CASE WHEN a."group" = b."group" THEN 0.0
                ELSE greatest(0.0, list_inner_product(a.p, a.log_p) + list_inner_product(b.p, b.log_p)
                                   - list_inner_product(a.p, b.log_p) - list_inner_product(b.p, a.log_p))
           END AS divergence,
           a.basis_id AS basis_id
    FROM probabilities AS a JOIN probabilities AS b USING (component)
)
SELECT group_a, group_b, component, divergence, weight, weight * divergence AS shift, basis_id
FROM divergences
ORDER BY group_a, group_b, component;
