-- -------------------------------------------------------------------------------------------------- descriptors
-- Scalar macros over one kernel, w, of any size: the same numbers as cnnfilterdb.stats.descriptors, which documents the
-- formulas. `kernel` is the size of w where it matters. NULL for a kernel of zeros, and where a descriptor is
-- undefined.
--   SELECT avg(symmetry(w)), avg(dct_low(w, kernel := '5x5')) FROM filters_5x5
-- Anything that depends only on the size is a constant, which DuckDB computes once.

-- The sides of a kernel size, and its number of weights.
CREATE OR REPLACE MACRO kernel_height(kernel) AS split_part(kernel, 'x', 1)::INTEGER;
CREATE OR REPLACE MACRO kernel_width(kernel) AS split_part(kernel, 'x', 2)::INTEGER;
CREATE OR REPLACE MACRO kernel_weights(kernel) AS kernel_height(kernel) * kernel_width(kernel);

-- Rounding may leave the range of a share; least() and greatest() would turn NULL into a number.
CREATE OR REPLACE MACRO clipped(x, low, high) AS CASE WHEN x < low THEN low WHEN x > high THEN high ELSE x END;

-- Sum of squared weights; NULL for zeros.
CREATE OR REPLACE MACRO kernel_energy(w) AS nullif(list_inner_product(w::DOUBLE[], w::DOUBLE[]), 0);

-- Root of the sum of squared weights, and the sum of the weights.
CREATE OR REPLACE MACRO kernel_norm(w) AS sqrt(list_inner_product(w::DOUBLE[], w::DOUBLE[]));
CREATE OR REPLACE MACRO dc_gain(w) AS list_sum(w::DOUBLE[]);

-- Shares of the energy that a turn by 180 degrees keeps, and that swapping left and right, or top and bottom, keeps.
CREATE OR REPLACE MACRO kept_share(w, turned) AS
    clipped(0.5 + 0.5 * list_inner_product(w::DOUBLE[], turned::DOUBLE[]) / kernel_energy(w), 0, 1);
CREATE OR REPLACE MACRO symmetry(w) AS kept_share(w, list_reverse(w::DOUBLE[]));
CREATE OR REPLACE MACRO mirror_x(w, kernel := '3x3') AS kept_share(w, list_select(w::DOUBLE[], list_transform(
    range(kernel_weights(kernel)),
    lambda i: i // kernel_width(kernel) * kernel_width(kernel) + kernel_width(kernel) - i % kernel_width(kernel)
)));
CREATE OR REPLACE MACRO mirror_y(w, kernel := '3x3') AS kept_share(w, list_select(w::DOUBLE[], list_transform(
    range(kernel_weights(kernel)),
    lambda i: (kernel_height(kernel) - 1 - i // kernel_width(kernel)) * kernel_width(kernel)
              + i % kernel_width(kernel) + 1
)));

-- Cosine with a Laplacian of Gaussian: 1 for a bright centre in a dark surround, -1 reversed.
CREATE OR REPLACE MACRO mexican_hat(kernel) AS list_transform(
    list_transform(
        range(kernel_weights(kernel)),
        lambda i: pow(6 * (i // kernel_width(kernel) - (kernel_height(kernel) - 1) / 2) / kernel_height(kernel), 2)
                  + pow(6 * (i % kernel_width(kernel) - (kernel_width(kernel) - 1) / 2) / kernel_width(kernel), 2)
    ),
    lambda r: (1 - r / 2) * exp(-r / 2)
);
CREATE OR REPLACE MACRO centred(list) AS list_transform(list, lambda x: x - list_avg(list));
CREATE OR REPLACE MACRO centre_surround(w, kernel := '3x3') AS
    list_inner_product(w::DOUBLE[], centred(mexican_hat(kernel)))
    / CASE WHEN list_inner_product(centred(mexican_hat(kernel)), centred(mexican_hat(kernel))) > 1e-18
           THEN sqrt(list_inner_product(centred(mexican_hat(kernel)), centred(mexican_hat(kernel)))) END
    / sqrt(kernel_energy(w));

-- The orthonormal DCT-II of a kernel, frequency by frequency, and the shares of its energy in three bands.
CREATE OR REPLACE MACRO dct_rows(kernel) AS list_transform(range(kernel_weights(kernel)), lambda f: list_transform(
    range(kernel_weights(kernel)),
    lambda i: cos(pi() * (f // kernel_width(kernel)) * (i // kernel_width(kernel) + 0.5) / kernel_height(kernel))
              * cos(pi() * (f % kernel_width(kernel)) * (i % kernel_width(kernel) + 0.5) / kernel_width(kernel))
              * sqrt(CASE WHEN f // kernel_width(kernel) = 0 THEN 1 ELSE 2 END / kernel_height(kernel))
              * sqrt(CASE WHEN f % kernel_width(kernel) = 0 THEN 1 ELSE 2 END / kernel_width(kernel))
));
CREATE OR REPLACE MACRO low_dct_rows(kernel) AS list_transform(
    list_filter(
        range(1, kernel_weights(kernel)),
        lambda f: 4 * (pow(f // kernel_width(kernel) * kernel_width(kernel), 2)
                       + pow(f % kernel_width(kernel) * kernel_height(kernel), 2))
                  <= pow(kernel_weights(kernel), 2)
    ),
    lambda f: dct_rows(kernel)[f + 1]
);
CREATE OR REPLACE MACRO dct(w, kernel := '3x3') AS
    list_transform(dct_rows(kernel), lambda row: list_inner_product(w::DOUBLE[], row));
CREATE OR REPLACE MACRO dct_dc(w) AS
    clipped(pow(list_sum(w::DOUBLE[]), 2) / (len(w::DOUBLE[]) * kernel_energy(w)), 0, 1);
CREATE OR REPLACE MACRO dct_low(w, kernel := '3x3') AS clipped(coalesce(list_sum(list_transform(
    low_dct_rows(kernel), lambda row: pow(list_inner_product(w::DOUBLE[], row), 2)
)), 0) / kernel_energy(w), 0, 1);
CREATE OR REPLACE MACRO dct_high(w, kernel := '3x3') AS
    clipped(1 - dct_dc(w) - dct_low(w, kernel := kernel), 0, 1);

-- Share of the energy spectrum below half the Nyquist frequency.
CREATE OR REPLACE MACRO half_band(apart, side) AS
    CASE WHEN side = 1 THEN 1.0 WHEN apart = 0 THEN 0.5 ELSE sin(pi() * apart / 2) / (pi() * apart) END;
CREATE OR REPLACE MACRO half_band_rows(kernel) AS list_transform(range(kernel_weights(kernel)), lambda i: list_transform(
    range(kernel_weights(kernel)),
    lambda j: half_band(i // kernel_width(kernel) - j // kernel_width(kernel), kernel_height(kernel))
              * half_band(i % kernel_width(kernel) - j % kernel_width(kernel), kernel_width(kernel))
));
CREATE OR REPLACE MACRO fft_low(w, kernel := '3x3') AS clipped(list_inner_product(
    w::DOUBLE[],
    list_transform(half_band_rows(kernel), lambda row: list_inner_product(w::DOUBLE[], row))
) / kernel_energy(w), 0, 1);

-- Direction of the strongest change, in radians from 0 to pi, anticlockwise from the horizontal, and how much stronger
-- the change is there than across: 0 to 1. Gradients by central differences, one-sided at the edges.
CREATE OR REPLACE MACRO slope(i, j, side) AS CASE
    WHEN side = 1 THEN 0.0
    WHEN i = 0 THEN CASE j WHEN 1 THEN 1.0 WHEN 0 THEN -1.0 ELSE 0.0 END
    WHEN i = side - 1 THEN CASE i - j WHEN 0 THEN 1.0 WHEN 1 THEN -1.0 ELSE 0.0 END
    ELSE CASE i - j WHEN -1 THEN 0.5 WHEN 1 THEN -0.5 ELSE 0.0 END
END::DOUBLE;
CREATE OR REPLACE MACRO across_rows(kernel) AS list_transform(range(kernel_weights(kernel)), lambda i: list_transform(
    range(kernel_weights(kernel)),
    lambda j: CASE WHEN i // kernel_width(kernel) = j // kernel_width(kernel)
                   THEN slope(i % kernel_width(kernel), j % kernel_width(kernel), kernel_width(kernel)) ELSE 0 END
));
CREATE OR REPLACE MACRO down_rows(kernel) AS list_transform(range(kernel_weights(kernel)), lambda i: list_transform(
    range(kernel_weights(kernel)),
    lambda j: CASE WHEN i % kernel_width(kernel) = j % kernel_width(kernel)
                   THEN slope(i // kernel_width(kernel), j // kernel_width(kernel), kernel_height(kernel)) ELSE 0 END
));
CREATE OR REPLACE MACRO structure_tensor(w, kernel := '3x3') AS {
    'xx': list_inner_product(list_transform(across_rows(kernel), lambda row: list_inner_product(w::DOUBLE[], row)),
                             list_transform(across_rows(kernel), lambda row: list_inner_product(w::DOUBLE[], row))),
    'xy': list_inner_product(list_transform(across_rows(kernel), lambda row: list_inner_product(w::DOUBLE[], row)),
                             list_transform(down_rows(kernel), lambda row: list_inner_product(w::DOUBLE[], row))),
    'yy': list_inner_product(list_transform(down_rows(kernel), lambda row: list_inner_product(w::DOUBLE[], row)),
                             list_transform(down_rows(kernel), lambda row: list_inner_product(w::DOUBLE[], row)))
};
CREATE OR REPLACE MACRO tensor_change(t, energy) AS CASE WHEN t.xx + t.yy > 1e-12 * energy THEN t.xx + t.yy END;
CREATE OR REPLACE MACRO tensor_strength(t) AS sqrt(pow(t.xx - t.yy, 2) + pow(2 * t.xy, 2));
CREATE OR REPLACE MACRO upward(angle) AS CASE
    WHEN angle >= 0 THEN angle + 0.0::DOUBLE WHEN angle + pi() < pi() THEN angle + pi() ELSE 0.0::DOUBLE
END;
CREATE OR REPLACE MACRO coherence(w, kernel := '3x3') AS clipped(
    tensor_strength(structure_tensor(w, kernel := kernel))
    / tensor_change(structure_tensor(w, kernel := kernel), kernel_energy(w)), 0, 1);
CREATE OR REPLACE MACRO orientation(w, kernel := '3x3') AS CASE
    WHEN tensor_strength(structure_tensor(w, kernel := kernel))
         > 1e-12 * tensor_change(structure_tensor(w, kernel := kernel), kernel_energy(w))
    THEN upward(0.5 * atan2(
        -2 * structure_tensor(w, kernel := kernel).xy,
        structure_tensor(w, kernel := kernel).xx - structure_tensor(w, kernel := kernel).yy
    ))
END;

-- 0 when all weights are of one magnitude (binary kernels); with `values := 3`, of one magnitude or 0 (ternary ones).
CREATE OR REPLACE MACRO falling_magnitudes(w) AS
    list_reverse_sort(list_transform(w::DOUBLE[], lambda x: abs(x)));
CREATE OR REPLACE MACRO binary_residual(w, "values" := 2) AS clipped(1 - CASE "values"
    WHEN 2 THEN pow(list_sum(falling_magnitudes(w)), 2) / len(w::DOUBLE[])
    WHEN 3 THEN list_max(list_transform(
        range(1, len(w::DOUBLE[]) + 1),
        lambda m: pow(list_sum(list_slice(falling_magnitudes(w), 1, m)), 2) / m
    ))
    ELSE error('values: ' || "values" || ' given; expected 2 (a and -a) or 3 (with 0)')
END / kernel_energy(w), 0, 1);
