-- -------------------------------------------------------------------------------------------------- descriptors
-- Scalar macros over one kernel, w, of any size: the same numbers as cnnfilterdb.stats.descriptors, which documents the
-- formulas. `kernel` is the size of w where it matters. NULL for a kernel of zeros, and where a descriptor is
-- undefined.
--   SELECT avg(symmetry(w)), avg(dct_low(w, kernel := '5x5')) FROM filters_5x5
-- Anything that depends only on the size is a constant, which DuckDB computes once.

-- Height of a kernel size.
-- Example: SELECT kernel_height('1x7') AS height
CREATE OR REPLACE MACRO kernel_height(kernel) AS split_part(kernel, 'x', 1)::INTEGER;

-- Width of a kernel size.
-- Example: SELECT kernel_width('1x7') AS width
CREATE OR REPLACE MACRO kernel_width(kernel) AS split_part(kernel, 'x', 2)::INTEGER;

-- Number of weights of a kernel size.
-- Example: SELECT kernel_weights('1x7') AS weights
CREATE OR REPLACE MACRO kernel_weights(kernel) AS kernel_height(kernel) * kernel_width(kernel);

-- A number limited to a range: rounding may leave that of a share, and least() and greatest() would turn NULL into a
-- number.
-- Example: SELECT clipped(1.0000001, 0, 1) AS share
CREATE OR REPLACE MACRO clipped(x, low, high) AS CASE WHEN x < low THEN low WHEN x > high THEN high ELSE x END;

-- Sum of squared weights; NULL for zeros.
-- Example: SELECT kernel_energy([1, 0, -1]) AS energy
CREATE OR REPLACE MACRO kernel_energy(w) AS nullif(list_inner_product(w::DOUBLE[], w::DOUBLE[]), 0);

-- Root of the sum of squared weights.
-- Example: SELECT round(kernel_norm([1, 0, -1]), 3) AS norm
CREATE OR REPLACE MACRO kernel_norm(w) AS sqrt(list_inner_product(w::DOUBLE[], w::DOUBLE[]));

-- Sum of the weights: how the kernel amplifies a constant image.
-- Example: SELECT dc_gain([1, 2, 1]) AS smoothing, dc_gain([1, 0, -1]) AS edge
CREATE OR REPLACE MACRO dc_gain(w) AS list_sum(w::DOUBLE[]);

-- Share of the energy of a kernel that `turned`, the kernel after a turn or a reflection, keeps.
-- Example: SELECT kept_share([1, 2, 0], [0, 2, 1]) AS kept
CREATE OR REPLACE MACRO kept_share(w, turned) AS
    clipped(0.5 + 0.5 * list_inner_product(w::DOUBLE[], turned::DOUBLE[]) / kernel_energy(w), 0, 1);

-- Share of the energy that a turn by 180 degrees keeps: 1 for a symmetric kernel, 0 for an antisymmetric one.
-- Example: SELECT symmetry([1, 2, 1]) AS even, symmetry([1, 0, -1]) AS odd
CREATE OR REPLACE MACRO symmetry(w) AS kept_share(w, list_reverse(w::DOUBLE[]));

-- Share of the energy that swapping left and right keeps.
-- Example: SELECT mirror_x([1, 0, -1, 2, 0, -2, 1, 0, -1]) AS sobel
CREATE OR REPLACE MACRO mirror_x(w, kernel := '3x3') AS kept_share(w, list_select(w::DOUBLE[], list_transform(
    range(kernel_weights(kernel)),
    lambda i: i // kernel_width(kernel) * kernel_width(kernel) + kernel_width(kernel) - i % kernel_width(kernel)
)));

-- Share of the energy that swapping top and bottom keeps.
-- Example: SELECT mirror_y([1, 0, -1, 2, 0, -2, 1, 0, -1]) AS sobel
CREATE OR REPLACE MACRO mirror_y(w, kernel := '3x3') AS kept_share(w, list_select(w::DOUBLE[], list_transform(
    range(kernel_weights(kernel)),
    lambda i: (kernel_height(kernel) - 1 - i // kernel_width(kernel)) * kernel_width(kernel)
              + i % kernel_width(kernel) + 1
)));

-- A Laplacian of Gaussian of a kernel size, row by row.
-- Example: SELECT list_transform(mexican_hat('3x3'), lambda x: round(x, 3)) AS kernel
CREATE OR REPLACE MACRO mexican_hat(kernel) AS list_transform(
    list_transform(
        range(kernel_weights(kernel)),
        lambda i: pow(6 * (i // kernel_width(kernel) - (kernel_height(kernel) - 1) / 2) / kernel_height(kernel), 2)
                  + pow(6 * (i % kernel_width(kernel) - (kernel_width(kernel) - 1) / 2) / kernel_width(kernel), 2)
    ),
    lambda r: (1 - r / 2) * exp(-r / 2)
);

-- A list minus its mean.
-- Example: SELECT centred([1, 2, 6]) AS centred
CREATE OR REPLACE MACRO centred(list) AS list_transform(list, lambda x: x - list_avg(list));

-- Cosine with a Laplacian of Gaussian: 1 for a bright centre in a dark surround, -1 reversed.
-- Example: SELECT round(centre_surround([0, -1, 0, -1, 4, -1, 0, -1, 0]), 3) AS cosine
CREATE OR REPLACE MACRO centre_surround(w, kernel := '3x3') AS
    list_inner_product(w::DOUBLE[], centred(mexican_hat(kernel)))
    / CASE WHEN list_inner_product(centred(mexican_hat(kernel)), centred(mexican_hat(kernel))) > 1e-18
           THEN sqrt(list_inner_product(centred(mexican_hat(kernel)), centred(mexican_hat(kernel)))) END
    / sqrt(kernel_energy(w));

-- The rows of the orthonormal DCT-II of a kernel size, frequency by frequency.
-- Example: SELECT list_transform(dct_rows('1x2'), lambda row: list_transform(row, lambda x: round(x, 3))) AS rows
CREATE OR REPLACE MACRO dct_rows(kernel) AS list_transform(range(kernel_weights(kernel)), lambda f: list_transform(
    range(kernel_weights(kernel)),
    lambda i: cos(pi() * (f // kernel_width(kernel)) * (i // kernel_width(kernel) + 0.5) / kernel_height(kernel))
              * cos(pi() * (f % kernel_width(kernel)) * (i % kernel_width(kernel) + 0.5) / kernel_width(kernel))
              * sqrt(CASE WHEN f // kernel_width(kernel) = 0 THEN 1 ELSE 2 END / kernel_height(kernel))
              * sqrt(CASE WHEN f % kernel_width(kernel) = 0 THEN 1 ELSE 2 END / kernel_width(kernel))
));

-- Those rows of the DCT-II that belong to the low band: at most half the largest frequency, without the constant.
-- Example: SELECT len(low_dct_rows('5x5')) AS rows
CREATE OR REPLACE MACRO low_dct_rows(kernel) AS list_transform(
    list_filter(
        range(1, kernel_weights(kernel)),
        lambda f: 4 * (pow(f // kernel_width(kernel) * kernel_width(kernel), 2)
                       + pow(f % kernel_width(kernel) * kernel_height(kernel), 2))
                  <= pow(kernel_weights(kernel), 2)
    ),
    lambda f: dct_rows(kernel)[f + 1]
);

-- The orthonormal DCT-II of a kernel, frequency by frequency.
-- Example: SELECT list_transform(dct([1, 0, -1], kernel := '1x3'), lambda x: round(x, 3)) AS dct
CREATE OR REPLACE MACRO dct(w, kernel := '3x3') AS
    list_transform(dct_rows(kernel), lambda row: list_inner_product(w::DOUBLE[], row));

-- Share of the energy in the constant component.
-- Example: SELECT round(dct_dc([1, 2, 1]), 3) AS share
CREATE OR REPLACE MACRO dct_dc(w) AS
    clipped(pow(list_sum(w::DOUBLE[]), 2) / (len(w::DOUBLE[]) * kernel_energy(w)), 0, 1);

-- Share of the energy in the low band of the DCT-II.
-- Example: SELECT round(dct_low([1, 2, 3, 2, 3, 4, 3, 4, 5]), 3) AS share
CREATE OR REPLACE MACRO dct_low(w, kernel := '3x3') AS clipped(coalesce(list_sum(list_transform(
    low_dct_rows(kernel), lambda row: pow(list_inner_product(w::DOUBLE[], row), 2)
)), 0) / kernel_energy(w), 0, 1);

-- Share of the energy in the high band of the DCT-II: what is neither constant nor low.
-- Example: SELECT round(dct_high([0, 1, 0, 1, -4, 1, 0, 1, 0]), 3) AS share
CREATE OR REPLACE MACRO dct_high(w, kernel := '3x3') AS
    clipped(1 - dct_dc(w) - dct_low(w, kernel := kernel), 0, 1);

-- Correlation of two weights, `apart` steps from each other, in the band below half the Nyquist frequency.
-- Example: SELECT half_band(0, 3) AS same, round(half_band(1, 3), 3) AS neighbours
CREATE OR REPLACE MACRO half_band(apart, side) AS
    CASE WHEN side = 1 THEN 1.0 WHEN apart = 0 THEN 0.5 ELSE sin(pi() * apart / 2) / (pi() * apart) END;

-- The matrix of half_band between every two weights of a kernel size.
-- Example: SELECT list_transform(half_band_rows('1x2'), lambda row: list_transform(row, lambda x: round(x, 3))) AS rows
CREATE OR REPLACE MACRO half_band_rows(kernel) AS list_transform(range(kernel_weights(kernel)), lambda i: list_transform(
    range(kernel_weights(kernel)),
    lambda j: half_band(i // kernel_width(kernel) - j // kernel_width(kernel), kernel_height(kernel))
              * half_band(i % kernel_width(kernel) - j % kernel_width(kernel), kernel_width(kernel))
));

-- Share of the energy spectrum below half the Nyquist frequency.
-- Example: SELECT round(fft_low([1, 2, 1, 2, 4, 2, 1, 2, 1]), 3) AS blur, round(fft_low([0, 1, 0, 1, -4, 1, 0, 1, 0]), 3) AS laplacian
CREATE OR REPLACE MACRO fft_low(w, kernel := '3x3') AS clipped(list_inner_product(
    w::DOUBLE[],
    list_transform(half_band_rows(kernel), lambda row: list_inner_product(w::DOUBLE[], row))
) / kernel_energy(w), 0, 1);

-- The factor of weight j in the gradient at weight i of a row of `side` weights: central differences, one-sided at the
-- edges.
-- Example: SELECT slope(1, 2, 3) AS factor
CREATE OR REPLACE MACRO slope(i, j, side) AS CASE
    WHEN side = 1 THEN 0.0
    WHEN i = 0 THEN CASE j WHEN 1 THEN 1.0 WHEN 0 THEN -1.0 ELSE 0.0 END
    WHEN i = side - 1 THEN CASE i - j WHEN 0 THEN 1.0 WHEN 1 THEN -1.0 ELSE 0.0 END
    ELSE CASE i - j WHEN -1 THEN 0.5 WHEN 1 THEN -0.5 ELSE 0.0 END
END::DOUBLE;

-- The matrix of horizontal gradients of a kernel size.
-- Example: SELECT across_rows('1x3') AS rows
CREATE OR REPLACE MACRO across_rows(kernel) AS list_transform(range(kernel_weights(kernel)), lambda i: list_transform(
    range(kernel_weights(kernel)),
    lambda j: CASE WHEN i // kernel_width(kernel) = j // kernel_width(kernel)
                   THEN slope(i % kernel_width(kernel), j % kernel_width(kernel), kernel_width(kernel)) ELSE 0 END
));

-- The matrix of vertical gradients of a kernel size.
-- Example: SELECT down_rows('3x1') AS rows
CREATE OR REPLACE MACRO down_rows(kernel) AS list_transform(range(kernel_weights(kernel)), lambda i: list_transform(
    range(kernel_weights(kernel)),
    lambda j: CASE WHEN i % kernel_width(kernel) = j % kernel_width(kernel)
                   THEN slope(i // kernel_width(kernel), j // kernel_width(kernel), kernel_height(kernel)) ELSE 0 END
));

-- Sums of the products of the gradients of a kernel: xx, xy and yy.
-- Example: SELECT structure_tensor([1, 0, -1, 2, 0, -2, 1, 0, -1]) AS sobel
CREATE OR REPLACE MACRO structure_tensor(w, kernel := '3x3') AS {
    'xx': list_inner_product(list_transform(across_rows(kernel), lambda row: list_inner_product(w::DOUBLE[], row)),
                             list_transform(across_rows(kernel), lambda row: list_inner_product(w::DOUBLE[], row))),
    'xy': list_inner_product(list_transform(across_rows(kernel), lambda row: list_inner_product(w::DOUBLE[], row)),
                             list_transform(down_rows(kernel), lambda row: list_inner_product(w::DOUBLE[], row))),
    'yy': list_inner_product(list_transform(down_rows(kernel), lambda row: list_inner_product(w::DOUBLE[], row)),
                             list_transform(down_rows(kernel), lambda row: list_inner_product(w::DOUBLE[], row)))
};

-- The total change of a structure tensor, t; NULL where it is no more than rounding, compared with the energy.
-- Example: SELECT tensor_change({'xx': 2.0, 'xy': 0.0, 'yy': 1.0}, 4) AS change
CREATE OR REPLACE MACRO tensor_change(t, energy) AS CASE WHEN t.xx + t.yy > 1e-12 * energy THEN t.xx + t.yy END;

-- How much the change along the strongest direction exceeds that across it.
-- Example: SELECT tensor_strength({'xx': 2.0, 'xy': 0.0, 'yy': 1.0}) AS strength
CREATE OR REPLACE MACRO tensor_strength(t) AS sqrt(pow(t.xx - t.yy, 2) + pow(2 * t.xy, 2));

-- An angle between -pi / 2 and pi / 2 moved to the range from 0 to pi.
-- Example: SELECT round(upward(-0.5), 3) AS angle
CREATE OR REPLACE MACRO upward(angle) AS CASE
    WHEN angle >= 0 THEN angle + 0.0::DOUBLE WHEN angle + pi() < pi() THEN angle + pi() ELSE 0.0::DOUBLE
END;

-- How much stronger the change is in its strongest direction than across: 0 to 1.
-- Example: SELECT round(coherence([1, 0, -1, 2, 0, -2, 1, 0, -1]), 3) AS sobel
CREATE OR REPLACE MACRO coherence(w, kernel := '3x3') AS clipped(
    tensor_strength(structure_tensor(w, kernel := kernel))
    / tensor_change(structure_tensor(w, kernel := kernel), kernel_energy(w)), 0, 1);

-- Direction of the strongest change, in radians from 0 to pi, anticlockwise from the horizontal.
-- Example: SELECT orientation([1, 0, -1, 2, 0, -2, 1, 0, -1]) AS across, round(orientation([1, 2, 1, 0, 0, 0, -1, -2, -1]), 3) AS down
CREATE OR REPLACE MACRO orientation(w, kernel := '3x3') AS CASE
    WHEN tensor_strength(structure_tensor(w, kernel := kernel))
         > 1e-12 * tensor_change(structure_tensor(w, kernel := kernel), kernel_energy(w))
    THEN upward(0.5 * atan2(
        -2 * structure_tensor(w, kernel := kernel).xy,
        structure_tensor(w, kernel := kernel).xx - structure_tensor(w, kernel := kernel).yy
    ))
END;

-- The absolute weights of a kernel, largest first.
-- Example: SELECT falling_magnitudes([1, 0, -4]) AS magnitudes
CREATE OR REPLACE MACRO falling_magnitudes(w) AS
    list_reverse_sort(list_transform(w::DOUBLE[], lambda x: abs(x)));

-- 0 when all weights are of one magnitude (binary kernels); with `values := 3`, of one magnitude or 0 (ternary ones).
-- Example: SELECT binary_residual([1, -1, 1]) AS binary, round(binary_residual([1, 0, -1]), 3) AS ternary, binary_residual([1, 0, -1], "values" := 3) AS as_ternary
CREATE OR REPLACE MACRO binary_residual(w, "values" := 2) AS clipped(1 - CASE "values"
    WHEN 2 THEN pow(list_sum(falling_magnitudes(w)), 2) / len(w::DOUBLE[])
    WHEN 3 THEN list_max(list_transform(
        range(1, len(w::DOUBLE[]) + 1),
        lambda m: pow(list_sum(list_slice(falling_magnitudes(w), 1, m)), 2) / m
    ))
    ELSE error('values: ' || "values" || ' given; expected 2 (a and -a) or 3 (with 0)')
END / kernel_energy(w), 0, 1);
