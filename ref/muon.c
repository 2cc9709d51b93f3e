/* spec/muon.md: the optimiser's step for one weight matrix. */
#include "ref.h"

#include <gsl/gsl_blas.h>
#include <math.h>
#include <stdlib.h>

/* X <- a X + (b A + c A A) X with A = X X^T. */
static void newton_schulz(gsl_matrix *X, double a, double b, double c)
{
    gsl_matrix *A = gsl_matrix_alloc(X->size1, X->size1);
    gsl_matrix *P = gsl_matrix_alloc(X->size1, X->size1);
    gsl_matrix *Y = gsl_matrix_alloc(X->size1, X->size2);
    gsl_blas_dgemm(CblasNoTrans, CblasTrans, 1, X, X, 0, A);
    gsl_matrix_memcpy(P, A);
    gsl_blas_dgemm(CblasNoTrans, CblasNoTrans, c, A, A, b, P);
    gsl_matrix_memcpy(Y, X);
    gsl_blas_dgemm(CblasNoTrans, CblasNoTrans, 1, P, X, a, Y);
    gsl_matrix_memcpy(X, Y);
    gsl_matrix_free(A);
    gsl_matrix_free(P);
    gsl_matrix_free(Y);
}

/* G [rows, cols], the gradient; B, the momentum buffer, and M, the weights, are updated in place. */
void ref_muon_step(const ref_muon_options *options, int64_t rows, int64_t cols, const double *G,
                   double *B, double *M)
{
    double mu = options->momentum, lr = options->learning_rate;
    /* muon.transpose.1: Where rows > cols the orthogonalisation below works on the transpose, and
     * its result is transposed back. */
    bool tall = rows > cols;
    gsl_matrix *X = tall ? gsl_matrix_alloc((size_t)cols, (size_t)rows)
                         : gsl_matrix_alloc((size_t)rows, (size_t)cols);
    double squares = 0;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++) {
            int64_t at = i * cols + j;
            /* muon.momentum.1: B becomes mu B + G, mu = 0.95. */
            B[at] = mu * B[at] + G[at];
            /* muon.nesterov.1: The update is U = G + mu B, with the new B. */
            double u = G[at] + mu * B[at];
            gsl_matrix_set(X, (size_t)(tall ? j : i), (size_t)(tall ? i : j), u);
            squares += u * u;
        }
    /* muon.orthogonal.1: X = U / ||U||, the Frobenius norm. (An update of 0 stays 0.) */
    if (squares > 0)
        gsl_matrix_scale(X, 1 / sqrt(squares));
    /* muon.orthogonal.2: Eight times: X becomes a X + (b A + c A^2) X with A = X X^T and (a, b, c)
     * = (3.4445, -4.7750, 2.0315). */
    for (int i = 0; i < 8; i++)
        newton_schulz(X, 3.4445, -4.7750, 2.0315);
    /* muon.orthogonal.3: Then twice the same with (a, b, c) = (2, -1.5, 0.5). */
    for (int i = 0; i < 2; i++)
        newton_schulz(X, 2, -1.5, 0.5);
    /* muon.update.1: M becomes M (1 - lr wd) - lr 0.18 sqrt(max(rows, cols)) X, wd = 0.1. */
    double step = lr * options->rescale * sqrt((double)(rows > cols ? rows : cols));
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++)
            M[i * cols + j] =
                M[i * cols + j] * (1 - lr * options->weight_decay) -
                step * gsl_matrix_get(X, (size_t)(tall ? j : i), (size_t)(tall ? i : j));
    gsl_matrix_free(X);
}
