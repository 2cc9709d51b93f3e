/* spec/muon.md */
#include <math.h>
#include <string.h>

#include "small.h"

static const ref_muon_options training = {
    .momentum = 0.95, .learning_rate = 0.02, .weight_decay = 0.1, .rescale = 0.18};

/* X -> a X + (b A + c A A) X turns each singular value x into a x + b x^3 + c x^5. */
static double orthogonalised(double x)
{
    for (int i = 0; i < 10; i++) {
        double a = i < 8 ? 3.4445 : 2, b = i < 8 ? -4.7750 : -1.5, c = i < 8 ? 2.0315 : 0.5;
        x = a * x + b * pow(x, 3) + c * pow(x, 5);
    }
    return x;
}

/* The matrix with singular values `value` between two rotations in the plane, in the corner of a
 * [rows, cols] one. */
static void rotated(const double *value, int64_t rows, int64_t cols, double *M)
{
    const double left[4] = {0.6, -0.8, 0.8, 0.6};
    const double right[4] = {5.0 / 13, 12.0 / 13, -12.0 / 13, 5.0 / 13};
    memset(M, 0, (size_t)(rows * cols) * sizeof *M);
    for (int64_t i = 0; i < 2 && i < rows; i++)
        for (int64_t j = 0; j < 2 && j < cols; j++)
            for (int k = 0; k < 2; k++)
                M[i * cols + j] += left[i * 2 + k] * value[k] * right[k * 2 + j];
}

/* covers: muon.transpose.1 muon.orthogonal.1 muon.orthogonal.2 muon.orthogonal.3 muon.update.1 */
static void singular_values(void **state)
{
    small *s = *state;
    static const int64_t shapes[4][2] = {{2, 2}, {2, 3}, {3, 2}, {2, 7}};
    const double value[2] = {3, 0.4}, norm = sqrt(9 + 0.16);
    const double made[2] = {orthogonalised(3 / norm), orthogonalised(0.4 / norm)};
    for (int i = 0; i < 4; i++) {
        int64_t rows = shapes[i][0], cols = shapes[i][1];
        double G[14], B[14] = {0}, M[14], X[14], want[14];
        rotated(value, rows, cols, G);
        rotated(made, rows, cols, X);
        for (int64_t j = 0; j < rows * cols; j++) {
            M[j] = small_random(s);
            want[j] = M[j] * (1 - 0.02 * 0.1) -
                      0.02 * 0.18 * sqrt((double)(rows > cols ? rows : cols)) * X[j];
        }
        ref_muon_step(&training, rows, cols, G, B, M);
        small_near(s, M, want, rows * cols, 1e-14);
        small_same(s, B, G, rows * cols);
    }
    /* Both end near 1, from singular values 7.5 times apart. */
    assert_true(fabs(made[0] - 1) < 0.01 && fabs(made[1] - 1) < 0.01);
}

/* A tall step is the wide step of the transpose. (In real arithmetic the iteration itself gives the
 * same for both; the rule saves work.) covers: muon.transpose.1 muon.update.1 */
static void transposed(void **state)
{
    small *s = *state;
    enum { rows = 7, cols = 4 };
    double G[2][rows * cols], B[2][rows * cols], M[2][rows * cols], turned[rows * cols];
    for (int i = 0; i < rows * cols; i++) {
        int j = i % cols * rows + i / cols;
        G[1][j] = G[0][i] = small_random(s);
        B[1][j] = B[0][i] = small_random(s);
        M[1][j] = M[0][i] = small_random(s);
    }
    ref_muon_step(&training, rows, cols, G[0], B[0], M[0]);
    ref_muon_step(&training, cols, rows, G[1], B[1], M[1]);
    for (int i = 0; i < rows * cols; i++)
        turned[i] = M[1][i % cols * rows + i / cols];
    small_near(s, M[0], turned, rows * cols, 1e-15);
}

/* One number: its X is the orthogonalised 1 or -1, by the sign of U.
 * covers: muon.momentum.1 muon.nesterov.1 muon.orthogonal.1 muon.update.1 */
static void momentum(void **state)
{
    small *s = *state;
    const double one = orthogonalised(1), step = 0.02 * 0.18 * one, keep = 1 - 0.02 * 0.1;
    double B = 0, M = 5, want = 5;
    ref_muon_step(&training, 1, 1, (double[]){4}, &B, &M); /* U = 4 + 0.95 x 4 */
    want = want * keep - step;
    small_about(s, B, 4, 0);
    small_about(s, M, want, 1e-15);
    ref_muon_step(&training, 1, 1, (double[]){-2.5}, &B, &M); /* B = 1.3, U = -2.5 + 1.235 < 0 */
    want = want * keep + step;
    small_about(s, B, 1.3, 1e-15);
    small_about(s, M, want, 1e-15);
    ref_muon_step(&training, 1, 1, (double[]){-0.6}, &B, &M); /* B = 0.635, U = 0.00325 > 0 */
    want = want * keep - step;
    small_about(s, B, 0.635, 1e-15);
    small_about(s, M, want, 1e-15);
}

/* covers: muon.orthogonal.1 muon.update.1 */
static void no_update(void **state)
{
    small *s = *state;
    const ref_muon_options other = {0.5, 0.25, 0.5, 1};
    double G[6] = {0}, B[6] = {0}, M[6] = {1, 2, 3, 4, 5, 6};
    ref_muon_step(&other, 2, 3, G, B, M);
    small_same(s, M, ((double[]){0.875, 1.75, 2.625, 3.5, 4.375, 5.25}), 6);
    small_same(s, B, G, 6);
}

/* covers: muon.momentum.1 muon.nesterov.1 muon.update.1 */
static void options(void **state)
{
    small *s = *state;
    const ref_muon_options other = {0.5, 0.25, 0.5, 2};
    double B = -4, M = 1;
    ref_muon_step(&other, 1, 1, (double[]){1.5}, &B, &M); /* B = -0.5, U = 1.25 */
    small_is(s, B, -0.5);
    small_about(s, M, 0.875 - 0.5 * orthogonalised(1), 1e-15);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        small_test(singular_values), small_test(transposed), small_test(momentum),
        small_test(no_update), small_test(options),
    };
    return cmocka_run_group_tests_name("muon", tests, NULL, NULL) != 0;
}
