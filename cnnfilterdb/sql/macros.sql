
-- ------------------------------------------------------------------------------------------------ scalar macros
-- A kernel, w, divided by its largest absolute weight; a kernel of zeros is returned unchanged.
-- Source: CNN Filter DB (arXiv 2203.15331).
-- Example: SELECT scale_filter([1, 0, -4]) AS scaled
CREATE OR REPLACE MACRO scale_filter(w) AS list_transform(
    w, lambda x: x / coalesce(nullif(greatest(list_max(w), -list_min(w)), 0), 1)
);

-- The components of the current basis of a kernel size, each with its product with the mean.
-- Example: SELECT len(basis_rows('3x3')) AS components
CREATE OR REPLACE MACRO basis_rows(size) AS coalesce((
    SELECT list_transform(
        current_bases.components,
        lambda row: {'component': row, 'offset': list_inner_product(row, current_bases.mean)}
    ) FROM current_bases WHERE current_bases.kernel = size
), error('no basis for ' || size || ' kernels; `cnnfilterdb index` fits one in a folder with such filters'));

-- SVD coefficients of one kernel, w, in the current basis of its size: a list. coefficients_3x3 has them for all filters.
-- Source: CNN Filter DB (arXiv 2203.15331).
-- Example: SELECT list_transform(svd_coefficients([1, 0, -1, 2, 0, -2, 1, 0, -1]), lambda c: round(c, 3)) AS coefficients
CREATE OR REPLACE MACRO svd_coefficients(w, kernel := '3x3') AS list_transform(
    basis_rows(kernel),
    lambda row: list_inner_product(row.component, CAST(scale_filter(w) AS DOUBLE[])) - row.offset
);

-- ------------------------------------------------------------------------------------------------- table macros
-- Arguments that several of them share:
--   by          any expression over the columns of `facts`; rows where it is NULL are left out
--   where       a boolean expression that selects rows, quoted because WHERE is a keyword: "where" := task = 'Denoising'
--   kernel      kernel size
--   all_layers  true includes transposed layers and layers that are never executed, which the papers leave out
--   recipe      'cvpr2022' (range of the basis, weights by explained variance) or 'medneurips2022' (-3..3, uniform)
--   balance     what has the same weight within a group: 'filters', 'layers', 'models' or 'families'
--   basis       id of a basis; NULL means the one in use for the kernel size

-- Numbers of models, layers and filters of each group.
-- Example: FROM group_sizes(domain)
CREATE OR REPLACE MACRO group_sizes("by", "where" := true, kernel := '3x3', all_layers := false) AS TABLE
SELECT "by" AS "group",
       count(DISTINCT facts.model_id) AS models,
       count(*) AS layers,
       CAST(sum(facts.filters) AS BIGINT) AS filters
FROM facts
WHERE facts.stored AND facts.kernel = kernel AND "where" AND "by" IS NOT NULL
  AND (all_layers OR facts.papers_layer)
GROUP BY ALL ORDER BY ALL;

-- The layers of each group with their histograms, and the factor by which a balanced sum multiplies the counts of each. If
-- a selected layer is not in the index, an error is raised; rows are never left out. `number` counts the groups, or with
-- `by_model` the models of each group.
-- Example: SELECT "group", model_id, layer, filters, round(factor, 3) AS factor FROM group_layers(domain, balance := 'models')
CREATE OR REPLACE MACRO group_layers(
    "by", "where" := true, recipe := 'cvpr2022', balance := 'filters', kernel := '3x3', basis := NULL, all_layers := false,
    by_model := false
) AS TABLE
WITH chosen AS (
    SELECT bases.basis_id
    FROM bases
    WHERE bases.kernel = kernel AND bases.basis_id = coalesce(
        basis, (SELECT current_bases.basis_id FROM current_bases WHERE current_bases.kernel = kernel))
), selected AS (
    SELECT "by" AS "group", facts.model_id AS model_id, facts.layer AS layer, facts.filters AS filters,
           facts.tensor_sha256 AS tensor_sha256,
           CASE balance
               WHEN 'filters' THEN ''
               WHEN 'layers' THEN facts.model_id || chr(10) || facts.layer
               WHEN 'models' THEN facts.model_id
               WHEN 'families' THEN coalesce(facts.family, facts.architecture, facts.model_id)
               ELSE error('balance: ''' || balance || ''' is not one of filters, layers, models, families')
           END AS member
    FROM facts
    WHERE facts.stored AND facts.kernel = kernel AND "where" AND "by" IS NOT NULL
      AND (all_layers OR facts.papers_layer)
), weighted AS (
    SELECT *,
           CASE balance WHEN 'filters' THEN 1.0
                        ELSE 1.0 / sum(filters) OVER (PARTITION BY "group", member) END AS factor,
           -- Millions of counts are summed faster by a number than by the name of a group.
           CAST(dense_rank() OVER (ORDER BY "group", CASE WHEN by_model THEN model_id ELSE '' END) AS UINTEGER) AS number
    FROM selected
), joined AS (
    -- Histograms of removed models, or of weights that a layer no longer has, match nothing, so they need not be
    -- filtered out as the view `histograms` does.
    SELECT w.*, h.counts, h.below, h.above, h.low, h.high,
           coalesce(
               'layer ' || w.layer || ' of ' || w.model_id || ' is not in the index '
                   || (SELECT basis_id FROM chosen) || ': run `cnnfilterdb index`',
               'no basis ' || basis || ' for ' || kernel || ' kernels; the view bases lists them',
               'no basis for ' || kernel || ' kernels; `cnnfilterdb index` fits one in a folder with such filters'
           ) AS missing
    FROM weighted AS w LEFT JOIN (
        SELECT * FROM $histograms AS inner_h
        WHERE inner_h.basis_id = (SELECT basis_id FROM chosen)
          AND inner_h.recipe = CASE WHEN recipe IN ('cvpr2022', 'medneurips2022') THEN recipe
                                    ELSE error('recipe: ''' || recipe || ''' is not one of cvpr2022, medneurips2022') END
    ) AS h USING (model_id, layer, tensor_sha256)
)
SELECT number, "group", model_id, layer, filters, member, factor, counts, below, above, low, high
FROM joined
WHERE CASE WHEN low IS NULL THEN error(missing) ELSE true END;

-- Numbers of models, layers and filters of each group, the range of its histograms and the weights of components.
-- Example: SELECT "group", models, layers, filters, members, bins FROM group_totals(domain)
CREATE OR REPLACE MACRO group_totals(
    "by", "where" := true, recipe := 'cvpr2022', balance := 'filters', kernel := '3x3', basis := NULL, all_layers := false,
    by_model := false
) AS TABLE
WITH chosen AS (
    SELECT bases.basis_id, bases.bins, bases.explained_variance_ratio
    FROM bases
    WHERE bases.kernel = kernel AND bases.basis_id = coalesce(
        basis, (SELECT current_bases.basis_id FROM current_bases WHERE current_bases.kernel = kernel))
), sizes AS (
    SELECT number, any_value("group") AS "group", CASE WHEN by_model THEN any_value(model_id) ELSE '' END AS model_id,
           count(DISTINCT model_id) AS models, count(*) AS layers,
           CAST(sum(filters) AS BIGINT) AS filters, count(DISTINCT member) AS members,
           CAST(sum(list_sum(below) + list_sum(above)) AS BIGINT) AS outside,
           any_value(low) AS low, any_value(high) AS high
    FROM group_layers("by", "where" := "where", recipe := recipe, balance := balance, kernel := kernel, basis := basis,
                      all_layers := all_layers, by_model := by_model)
    GROUP BY number
)
SELECT number, "group", model_id, models, layers, filters, members, outside, low, high,
       chosen.basis_id, chosen.bins,
       CASE recipe WHEN 'cvpr2022' THEN chosen.explained_variance_ratio
                   ELSE list_transform(chosen.explained_variance_ratio,
                                       lambda x: 1.0 / len(chosen.explained_variance_ratio)) END AS weights
FROM sizes, chosen
ORDER BY number;

-- The histograms of each group, summed (and balanced), with their numbers of models, layers and filters. `by_model` gives
-- one row per group and model, balanced within the group.
-- Example: SELECT "group", models, layers, filters, bins, len(counts) AS counts FROM group_histograms(domain)
CREATE OR REPLACE MACRO group_histograms(
    "by", "where" := true, recipe := 'cvpr2022', balance := 'filters', kernel := '3x3', basis := NULL, all_layers := false,
    min_models := 1, min_filters := 1, by_model := false
) AS TABLE
WITH sums AS (
    SELECT number, position,
           CASE balance WHEN 'filters' THEN CAST(sum(count) AS DOUBLE) ELSE sum(count * factor) END AS total
    FROM (
        SELECT number, factor, unnest(counts) AS count, generate_subscripts(counts, 1) AS position
        FROM group_layers("by", "where" := "where", recipe := recipe, balance := balance, kernel := kernel, basis := basis,
                          all_layers := all_layers, by_model := by_model)
    )
    GROUP BY number, position
), lists AS (
    SELECT number, list(total ORDER BY position) AS counts FROM sums GROUP BY number
), totals AS (
    FROM group_totals("by", "where" := "where", recipe := recipe, balance := balance, kernel := kernel, basis := basis,
                      all_layers := all_layers, by_model := by_model)
)
SELECT totals.* EXCLUDE (number), counts
FROM totals JOIN lists USING (number)
WHERE by_model OR (models >= min_models AND filters >= min_filters)
ORDER BY number;

-- Shares of the coefficients of each group in each bin, one row per component. `share` uses the counts unchanged; in
-- `p` empty bins get the density that the papers give them, the float32 machine epsilon, before p is scaled to sum to
-- 1.
-- Source: CNN Filter DB (arXiv 2203.15331).
-- Example: SELECT "group", component, round(weight, 4) AS weight, round(list_max(p), 3) AS peak FROM group_probabilities(domain) WHERE component < 2
CREATE OR REPLACE MACRO group_probabilities(
    "by", "where" := true, recipe := 'cvpr2022', balance := 'filters', kernel := '3x3', basis := NULL, all_layers := false,
    min_models := 1, min_filters := 1
) AS TABLE
WITH groups AS (
    FROM group_histograms("by", "where" := "where", recipe := recipe, balance := balance, kernel := kernel, basis := basis,
                          all_layers := all_layers, min_models := min_models, min_filters := min_filters)
), components AS (
    SELECT "group", component, weights[component + 1] AS weight, (high - low) / bins AS width,
           list_slice(counts, component * bins + 1, (component + 1) * bins) AS counts,
           models, filters, outside / (filters * len(weights)) AS outside, basis_id
    FROM (SELECT *, unnest(range(len(weights))) AS component FROM groups)
), totals AS (
    SELECT *, CASE WHEN list_sum(counts) > 0 THEN list_sum(counts)
                   ELSE error('group ' || "group" || ': no coefficient is in the range of the recipe') END AS total,
           -- Sum of the bins when each empty one has the density epsilon.
           1 + len(list_filter(counts, lambda c: c = 0)) * 1.1920928955078125e-07 * width AS mass
    FROM components
), shares AS (
    SELECT *, list_transform(counts, lambda c: c / total) AS share FROM totals
)
SELECT "group", component, weight, width, share,
       list_transform(share, lambda s: CASE WHEN s = 0 THEN 1.1920928955078125e-07 * width ELSE s END / mass) AS p,
       models, filters, outside, basis_id
FROM shares
ORDER BY "group", component;

-- Symmetric KL divergence, in nats, of the coefficient distributions of every two groups: one row per cell of the
-- matrix. `shift` sums, over components by weight, sum over bins of (p - q)(ln p - ln q); `directed` is KL(a, b) alone.
-- Groups with fewer models or filters than `min_models` or `min_filters` are left out.
-- Source: CNN Filter DB (arXiv 2203.15331); for recipe 'medneurips2022', arXiv 2210.13799.
-- Example: SELECT group_a, group_b, round(shift, 3) AS shift, models_a, models_b, filters_a, filters_b FROM kl_shift(domain)
CREATE OR REPLACE MACRO kl_shift(
    "by", "where" := true, recipe := 'cvpr2022', balance := 'filters', kernel := '3x3', basis := NULL, all_layers := false,
    min_models := 1, min_filters := 1
) AS TABLE
WITH vectors AS MATERIALIZED (
    SELECT *, row_number() OVER (ORDER BY "group") AS number, list_inner_product(p, log_p) AS own
    FROM (
        SELECT "group", any_value(models) AS models, any_value(filters) AS filters, any_value(outside) AS outside,
               any_value(basis_id) AS basis_id,
               flatten(list(list_transform(p, lambda x: weight * x) ORDER BY component)) AS p,
               flatten(list(list_transform(p, lambda x: ln(x)) ORDER BY component)) AS log_p
        FROM group_probabilities("by", "where" := "where", recipe := recipe, balance := balance, kernel := kernel,
                                 basis := basis, all_layers := all_layers, min_models := min_models,
                                 min_filters := min_filters)
        GROUP BY "group"
    )
), limited AS MATERIALIZED (
    SELECT *
    FROM vectors
    WHERE CASE WHEN (SELECT count(*) FROM vectors) > 2000
               THEN error((SELECT count(*) FROM vectors)
                          || ' groups: at most 2000 can be compared; group by something coarser')
               ELSE true END
), crossed AS MATERIALIZED (
    SELECT a.number AS a, b.number AS b, list_inner_product(a.p, b.log_p) AS entropy FROM limited AS a, limited AS b
)
SELECT first."group" AS group_a, second."group" AS group_b,
       CASE WHEN there.a = there.b THEN 0.0
            ELSE greatest(0.0, (first.own + second.own) - (there.entropy + back.entropy)) END AS shift,
       CASE WHEN there.a = there.b THEN 0.0 ELSE greatest(0.0, first.own - there.entropy) END AS directed,
       first.models AS models_a, second.models AS models_b, first.filters AS filters_a, second.filters AS filters_b,
       first.outside AS outside_a, second.outside AS outside_b, first.basis_id AS basis_id
FROM crossed AS there JOIN crossed AS back ON there.a = back.b AND there.b = back.a
JOIN limited AS first ON first.number = there.a JOIN limited AS second ON second.number = there.b
ORDER BY there.a, there.b;

-- The same as kl_shift, one row per component: the unweighted divergence, the weight of the component, and their
-- product, `shift`. Also unweighted: the directed divergence KL(a, b), the Jensen-Shannon divergence (both in nats), the
-- total variation distance (0 to 1) and the Wasserstein-1 distance (in units of the coefficients).
-- Source: CNN Filter DB (arXiv 2203.15331).
-- Example: SELECT component, round(divergence, 3) AS divergence, round(weight, 4) AS weight, round(shift, 4) AS shift FROM kl_shift_components(domain) WHERE group_a < group_b
CREATE OR REPLACE MACRO kl_shift_components(
    "by", "where" := true, recipe := 'cvpr2022', balance := 'filters', kernel := '3x3', basis := NULL, all_layers := false,
    min_models := 1, min_filters := 1
) AS TABLE
WITH probabilities AS MATERIALIZED (
    SELECT "group", component, weight, width, p, share, basis_id,
           row_number() OVER (ORDER BY "group", component) AS number,
           list_transform(p, lambda x: ln(x)) AS log_p,
           list_inner_product(p, list_transform(p, lambda x: ln(x))) AS own,
           list_sum(list_transform(share, lambda s: CASE WHEN s > 0 THEN -s * ln(s) ELSE 0 END)) AS entropy,
           -- P(X <= right edge of the bin): the Wasserstein-1 distance is the area between two such staircases.
           list_transform(range(len(share)), lambda i: list_sum(list_slice(share, 1, i + 1))) AS cumulated
    FROM group_probabilities("by", "where" := "where", recipe := recipe, balance := balance, kernel := kernel,
                             basis := basis, all_layers := all_layers, min_models := min_models,
                             min_filters := min_filters)
), limited AS MATERIALIZED (
    SELECT *
    FROM probabilities
    WHERE CASE WHEN (SELECT count(DISTINCT "group") FROM probabilities) > 2000
               THEN error((SELECT count(DISTINCT "group") FROM probabilities)
                          || ' groups: at most 2000 can be compared; group by something coarser')
               ELSE true END
), pairs AS (
    SELECT a."group" AS group_a, b."group" AS group_b, component, a.weight AS weight, a.width AS width,
           a.number AS number_a, b.number AS number_b, a.number = b.number AS same, a.basis_id AS basis_id,
           a.own AS own_a, b.own AS own_b,
           list_inner_product(a.p, b.log_p) AS there, list_inner_product(b.p, a.log_p) AS back,
           a.entropy + b.entropy AS entropies, list_zip(a.share, b.share) AS shares,
           list_zip(a.cumulated, b.cumulated) AS cumulated
    FROM limited AS a JOIN limited AS b USING (component)
), divergences AS (
    SELECT *, CASE WHEN same THEN 0.0 ELSE greatest(0.0, (own_a + own_b) - (there + back)) END AS divergence
    FROM pairs
)
SELECT group_a, group_b, component, divergence, weight, weight * divergence AS shift,
       CASE WHEN same THEN 0.0 ELSE greatest(0.0, own_a - there) END AS directed,
       CASE WHEN same THEN 0.0
            ELSE greatest(0.0, list_sum(list_transform(
                shares, lambda z: CASE WHEN z[1] + z[2] > 0 THEN -(z[1] + z[2]) / 2 * ln((z[1] + z[2]) / 2) ELSE 0 END
            )) - entropies / 2) END AS jensen_shannon,
       list_sum(list_transform(shares, lambda z: abs(z[1] - z[2]))) / 2 AS total_variation,
       list_sum(list_transform(cumulated, lambda z: abs(z[1] - z[2]))) * width AS wasserstein,
       basis_id
FROM divergences
ORDER BY number_a, number_b;

-- Other measures of the distance between every two groups, each summed over components by weight: symmetric and
-- directed KL divergence, Jensen-Shannon divergence, total variation distance, Wasserstein-1 distance.
-- Example: SELECT group_a, group_b, round(jensen_shannon, 3) AS jensen_shannon, round(wasserstein, 3) AS wasserstein FROM shift_metrics(domain)
CREATE OR REPLACE MACRO shift_metrics(
    "by", "where" := true, recipe := 'cvpr2022', balance := 'filters', kernel := '3x3', basis := NULL, all_layers := false,
    min_models := 1, min_filters := 1
) AS TABLE
SELECT group_a, group_b, sum(shift) AS kl, sum(weight * directed) AS directed,
       sum(weight * jensen_shannon) AS jensen_shannon, sum(weight * total_variation) AS total_variation,
       sum(weight * wasserstein) AS wasserstein, any_value(basis_id) AS basis_id
FROM kl_shift_components("by", "where" := "where", recipe := recipe, balance := balance, kernel := kernel, basis := basis,
                         all_layers := all_layers, min_models := min_models, min_filters := min_filters)
GROUP BY group_a, group_b ORDER BY group_a, group_b;

-- The `top` groups nearest to the group `group`, by symmetric KL divergence.
-- Source: CNN Filter DB (arXiv 2203.15331).
-- Example: SELECT "group", round(shift, 3) AS shift, models, filters FROM nearest_groups(domain, 'natural', top := 3)
CREATE OR REPLACE MACRO nearest_groups(
    "by", "group", top := 10, "where" := true, recipe := 'cvpr2022', balance := 'filters', kernel := '3x3', basis := NULL,
    all_layers := false, min_models := 1, min_filters := 1
) AS TABLE
WITH shifts AS MATERIALIZED (
    FROM kl_shift("by", "where" := "where", recipe := recipe, balance := balance, kernel := kernel, basis := basis,
                  all_layers := all_layers, min_models := min_models, min_filters := min_filters)
)
SELECT group_b AS "group", shift, directed, models_b AS models, filters_b AS filters, outside_b AS outside, basis_id
FROM shifts
WHERE group_a = "group" AND group_b <> "group"
ORDER BY shift, group_b
LIMIT (
    SELECT CASE WHEN count(*) = 0
                THEN error('no group ' || "group" || ' to compare; group_sizes lists the groups') ELSE top END
    FROM shifts WHERE group_a = "group"
);
