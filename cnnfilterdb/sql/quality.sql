-- ------------------------------------------------------------------------------------------------------ quality
-- The weight of a kernel, w, that counts against the limit of sparsity: the largest absolute one, or with
-- medneurips2022 the largest.
-- Example: SELECT largest_weight([1, 0, -4]) AS largest, largest_weight([1, 0, -4], rule := 'medneurips2022') AS signed
CREATE OR REPLACE MACRO largest_weight(w, rule := 'cvpr2022') AS
    CASE WHEN rule = 'medneurips2022' THEN list_max(w) ELSE greatest(list_max(w), -list_min(w)) END::FLOAT;

-- Whether a kernel whose largest weight is `peak` is sparse, where the limit is `upper`.
-- Example: SELECT is_small(0.001, 0.01, 'cvpr2022') AS sparse
CREATE OR REPLACE MACRO is_small(peak, upper, rule) AS CASE
    WHEN rule IN ('cvpr2022', 'medneurips2022') THEN peak < upper::FLOAT
    WHEN rule = 'torchconvquality' THEN peak < upper::FLOAT OR upper = 0
    WHEN rule = 'cvprw2022' THEN peak <= upper::FLOAT
    ELSE error('rule: ''' || rule || ''' is not one of cvpr2022, torchconvquality, cvprw2022, medneurips2022')
END;

-- Aggregate, over the kernels of one layer: the share of those whose weights are all below `threshold` times the
-- layer's largest.
-- `rule` says whose code is followed where they differ: cvpr2022 (|w| less than the limit, so that a layer of zeros has
-- no sparse kernel), torchconvquality (the same, but a layer of zeros is sparse), cvprw2022 (less or equal) or
-- medneurips2022 (largest weights with their sign); see cnnfilterdb.stats.sparse_kernels.
-- Source: CNN Filter DB (arXiv 2203.15331).
-- Example: SELECT model_id, layer, sparsity(w, threshold := 0.2) AS sparsity FROM filters_3x3 GROUP BY ALL ORDER BY ALL
CREATE OR REPLACE MACRO sparsity(w, threshold := 0.01, rule := 'cvpr2022') AS
    list_avg(list_transform(
        list(largest_weight(w, rule := rule)),
        lambda peak: is_small(
            peak, threshold::DOUBLE * max(largest_weight(w, rule := rule))::DOUBLE, rule
        )::INTEGER
    ));

-- The label of a layer: 'random' (entropy near or above that of random kernels), 'collapsed' (both of the next
-- two), 'sparse', 'repetitive' (low entropy) or 'regular'; NULL where it is undefined. The same as
-- cnnfilterdb.stats.degeneration, where the thresholds are explained.
-- Source: CNN Filter DB (arXiv 2203.15331) for the quantities and the types of degeneration.
-- Example: SELECT layer_name, degeneration(variance_entropy, randomness_threshold, sparsity, weights := kernel_h * kernel_w) AS label FROM layers WHERE stored AND model_id = 'custom/scans' ORDER BY layer
CREATE OR REPLACE MACRO degeneration(
    variance_entropy, randomness_threshold, sparsity,
    weights := 9, margin := 0.02, low_entropy := 0.5, high_sparsity := 0.14
) AS CASE
    WHEN variance_entropy IS NULL OR sparsity IS NULL OR NOT coalesce(randomness_threshold > 0, false) THEN NULL
    WHEN variance_entropy >= randomness_threshold - margin::DOUBLE * (ln(weights) / ln(9)) THEN 'random'
    WHEN variance_entropy < low_entropy::DOUBLE * (ln(weights) / ln(9)) AND sparsity >= high_sparsity::DOUBLE
        THEN 'collapsed'
    WHEN sparsity >= high_sparsity::DOUBLE THEN 'sparse'
    WHEN variance_entropy < low_entropy::DOUBLE * (ln(weights) / ln(9)) THEN 'repetitive'
    ELSE 'regular'
END;

-- Whether a layer is quantised: its output channels have few different weights, at most `share` of their number.
-- Example: SELECT is_quantised(16, 576) AS four_bits, is_quantised(NULL, 576) AS many_levels
CREATE OR REPLACE MACRO is_quantised(levels, channel_weights, share := 0.5) AS
    levels IS NOT NULL AND levels <= share * channel_weights;

-- Quality of the kernels of each group. Sparsity and entropies are weighted by filters, orthogonality by output
-- channels. nonsparse_filters are what structured pruning of sparse kernels would keep. random_layers to
-- repetitive_layers are the shares of layers with a label of `degeneration`, whose thresholds are arguments, among
-- those that have one; degenerated_layers is random and collapsed together, quantised_layers the share of quantised
-- layers among all.
-- Source: CNN Filter DB (arXiv 2203.15331).
-- Example: SELECT "group", models, layers, filters, round(sparsity, 3) AS sparsity, round(variance_entropy, 3) AS variance_entropy, round(orthogonality, 3) AS orthogonality FROM filter_quality(family)
CREATE OR REPLACE MACRO filter_quality(
    "by", "where" := true, kernel := '3x3', all_layers := false,
    margin := 0.02, low_entropy := 0.5, high_sparsity := 0.14
) AS TABLE
WITH labelled AS (
    SELECT facts.*, "by" AS "group",
           degeneration(facts.variance_entropy, facts.randomness_threshold, facts.sparsity,
                        weights := facts.kernel_h * facts.kernel_w, margin := margin, low_entropy := low_entropy,
                        high_sparsity := high_sparsity) AS label
    FROM facts
    WHERE facts.stored AND facts.kernel = kernel AND "where" AND "by" IS NOT NULL
      AND (all_layers OR facts.papers_layer)
)
SELECT l."group",
       count(DISTINCT l.model_id) AS models,
       count(*) AS layers,
       CAST(sum(l.filters) AS BIGINT) AS filters,
       CAST(sum(coalesce(l.nonsparse_filters, l.filters)) AS BIGINT) AS nonsparse_filters,
       sum(l.sparsity * l.filters) / sum(l.filters) AS sparsity,
       sum(l.variance_entropy * l.filters)
           / sum(l.filters) FILTER (l.variance_entropy IS NOT NULL) AS variance_entropy,
       sum(l.variance_entropy_clean * l.filters)
           / sum(l.filters) FILTER (l.variance_entropy_clean IS NOT NULL) AS variance_entropy_clean,
       avg(l.variance_entropy / l.randomness_threshold) FILTER (l.randomness_threshold > 0) AS normalised_entropy,
       sum(l.orthogonality * l.out_channels)
           / sum(l.out_channels) FILTER (l.orthogonality IS NOT NULL) AS orthogonality,
       avg((l.label = 'random')::INTEGER) AS random_layers,
       avg((l.label = 'collapsed')::INTEGER) AS collapsed_layers,
       avg((l.label = 'sparse')::INTEGER) AS sparse_layers,
       avg((l.label = 'repetitive')::INTEGER) AS repetitive_layers,
       avg((l.label IN ('random', 'collapsed'))::INTEGER) AS degenerated_layers,
       avg(is_quantised(l.levels, l.filters * l.kernel_h * l.kernel_w / coalesce(l.out_channels, 1))::INTEGER)
           AS quantised_layers,
       CAST(sum(l.binary_filters) AS BIGINT) AS binary_filters
FROM labelled AS l
GROUP BY ALL ORDER BY ALL;
