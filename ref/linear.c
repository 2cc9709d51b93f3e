/* spec/linear.md: y = M x, with the weights as the checkpoint stores them. */
#include "ref.h"

#include <gsl/gsl_blas.h>
#include <stdlib.h>
#include <string.h>

/* y[t, o] = sum_i w[first + o, i] x[t, i] for `rows` rows of w. x [T, cols], y [T, stride]. A row is
 * decoded once and multiplied with all tokens; with `as_bf16` it passes a rounding point first. */
static void products(const ref_context *c, const dsv4_matrix *w, int64_t first, int64_t rows,
                     bool as_bf16, const double *x, int64_t T, double *y, int64_t stride)
{
    double *row = ref_new(w->cols);
    gsl_matrix_const_view X = gsl_matrix_const_view_array(x, (size_t)T, (size_t)w->cols);
    gsl_vector_const_view m = gsl_vector_const_view_array(row, (size_t)w->cols);
    for (int64_t o = 0; o < rows; o++) {
        ref_matrix_row(c, w, first + o, row);
        if (as_bf16)
            ref_bf16_all(c, row, w->cols);
        gsl_vector_view column =
            gsl_vector_view_array_with_stride(y + o, (size_t)stride, (size_t)T);
        gsl_blas_dgemv(CblasNoTrans, 1, &X.matrix, &m.vector, 0, &column.vector);
    }
    free(row);
}

void ref_linear(const ref_context *c, const dsv4_matrix *w, const double *x, int64_t T, double *y)
{
    double *input = ref_new(T * w->cols);
    memcpy(input, x, (size_t)(T * w->cols) * sizeof *x);
    bool quantised = w->scale != NULL;
    /* linear.quant.1: Released: the input of an FP8 or FP4 matrix passes act_quant in blocks of 128
     * first (quant.act.1). */
    if (quantised && c->numerics == DSV4_RELEASED)
        ref_act_quant(input, T * w->cols, 128);
    /* linear.product.1: The product sums M[o, i] x[i] over i with the dequantised weights.
     * (Released: the codes' products are exact; their sums are binary32 in any order.) */
    /* linear.plain.1: Released: a plain matrix (F32, BF16 or F16) is rounded to bf16, and its input
     * is used as it is. (Norm weights and other vectors are never rounded.) */
    products(c, w, 0, w->rows, !quantised, input, T, y, w->rows);
    /* linear.round.1: Released: the output is rounded to bf16. */
    ref_bf16_all(c, y, T * w->rows);
    free(input);
}

void ref_linear_f32(const ref_context *c, const dsv4_matrix *w, const double *x, int64_t T,
                    double *y)
{
    /* linear.f32.1: A binary32 map uses weights and input as they are. Released: its output is a
     * binary32 number. */
    products(c, w, 0, w->rows, false, x, T, y, w->rows);
    ref_f32_all(c, y, T * w->rows);
}

void ref_linear_grouped(const ref_context *c, const dsv4_matrix *w, int64_t groups, const double *x,
                        int64_t T, double *y)
{
    int64_t rows = w->rows / groups;
    double *input = ref_new(T * w->cols); /* [T, cols]: the group's values of every token */
    for (int64_t g = 0; g < groups; g++) {
        for (int64_t t = 0; t < T; t++)
            memcpy(input + t * w->cols, x + (t * groups + g) * w->cols,
                   (size_t)w->cols * sizeof *x);
        /* linear.grouped.1: Group g of the input is multiplied with rows g out to g out + out - 1
         * of the matrix. */
        /* linear.grouped.2: Released: the matrix, FP8 or not, is dequantised and rounded to bf16,
         * its input is not quantised, and the output is rounded to bf16. */
        products(c, w, g * rows, rows, true, input, T, y + g * rows, w->rows);
    }
    ref_bf16_all(c, y, T * w->rows);
    free(input);
}
