/* The exhibits of the museum, with their stories. */
#include "museum.h"

const museum_exhibit museum_exhibits[BUGS] = {
    [BUG_NONE] = {0},

    /* quant, linear */
    [E4M3_BIAS_8] = {"e4m3-bias-8", "quant_e4m3_decode", "quant.e4m3.1", WRONG_BOTH,
        "Codes are read as the \"fnuz\" kind of E4M3, whose exponent bias is 8 instead of 7, as on "
        "accelerators that know no other. Every weight is half of what it should be."},
    [E4M3_NO_SUBNORMALS] = {"e4m3-no-subnormals", "quant_e4m3_decode", "quant.e4m3.1", WRONG_BOTH,
        "Codes with exponent 0 are read as 0: a decoder by bit shifts that leaves out the "
        "subnormals. The smallest weights of every block are lost."},
    [E2M1_LINEAR] = {"e2m1-linear", "quant_e2m1_decode", "quant.e2m1.1", WRONG_BOTH,
        "The three magnitude bits are read as an integer 0..7, as in int4 formats, but stand for "
        "0, 0.5, 1, 1.5, 2, 3, 4, 6. All experts are off."},
    [E8M0_BIAS_126] = {"e8m0-bias-126", "quant_e8m0_decode", "quant.e8m0.1", WRONG_BOTH,
        "The scale byte e is taken as 2^(e - 126): off by one in the bias, or a mix-up with frexp, "
        "whose fractions begin at 1/2. Every quantised matrix is twice too large."},
    [E4M3_TRUNCATED] = {"e4m3-truncated", "quant_e4m3_encode", "quant.e4m3.2", WRONG_BOTH,
        "Values are rounded to E4M3 towards zero: the conversion drops the low bits instead of "
        "rounding to nearest. Activations shrink by some 3 % on average."},
    [E2M1_TIES_AWAY] = {"e2m1-ties-away", "quant_e2m1_encode", "quant.e2m1.2", WRONG_BOTH,
        "A value in the middle between two E2M1 numbers goes to the larger one: a chain of "
        "comparisons with midpoints. With bf16 inputs and scales of powers of two, ties are "
        "common."},
    [NIBBLE_ORDER] = {"nibble-order", "quant_e2m1_decode", "quant.fp4.1", WRONG_BOTH,
        "The high nibble of a byte is taken as the first value, as other FP4 packings have it. "
        "Neighbouring columns of every FP4 matrix change places."},
    [FP4_SCALE_PER_16] = {"fp4-scale-per-16", "linear_fp4", "quant.fp4.1", WRONG_BOTH,
        "One scale is used for 16 values, as in NVFP4, where this format has one for 32. All "
        "columns behind the first 16 are multiplied with the scale of another block."},
    [FP8_SCALE_TRANSPOSED] = {"fp8-scale-transposed", "linear_fp8", "quant.fp8.1", WRONG_BOTH,
        "The scales are read column by column, a layout that some kernels want and a converter did "
        "not make. It shows only where a matrix has several blocks both ways."},
    [FP8_SCALE_PER_ROW] = {"fp8-scale-per-row", "linear_fp8", "quant.fp8.1", WRONG_BOTH,
        "The scale of the first block is used for the whole row, as if scales were one per row of "
        "blocks. Matrices of at most 128 columns come out right, which hides it in small tests."},
    [SCALE_IGNORED] = {"scale-ignored", "linear_fp8", "quant.fp8.1", WRONG_BOTH,
        "Codes are used without their scales: a loader that knows \"weight_scale_inv\" finds no "
        "tensor of that name and goes on without."},
    [FP8_SCALE_EVEN_SPLIT] = {"fp8-scale-even-split", "linear_fp8", "quant.fp8.1", WRONG_BOTH,
        "The size of a block is made of the shapes, as rows over rows of scales, instead of 128. A "
        "last block that is not full then takes rows from those before it. Found in "
        "nano-deepseek-v4 0.2.0."},
    [ACT_QUANT_MISSING] = {"act-quant-missing", "quant_act", "linear.quant.1", WRONG_RELEASED,
        "The input of an FP8 or FP4 product is used as it is, as weight-only kernels do. That is "
        "the exact contract, and some 2 % off per value from what the released code computes."},
    [ACT_QUANT_WHOLE_ROW] = {"act-quant-whole-row", "quant_act", "quant.act.1", WRONG_RELEASED,
        "One scale is used for a whole row of activations, as per-token quantisation has it. As "
        "E4M3 floats, only values some 2^15 below the row's largest change: a block of small "
        "values in a row with an outlier."},
    [ACT_QUANT_EXACT_SCALE] = {"act-quant-exact-scale", "quant_act", "quant.act.2",
        WRONG_RELEASED,
        "The scale is amax / 448 itself, as for models whose scales are binary32, and is not "
        "rounded up to a power of two. All codes are others."},
    [ACT_QUANT_SCALE_FLOOR] = {"act-quant-scale-floor", "quant_act", "quant.act.2",
        WRONG_RELEASED,
        "The exponent of the scale is rounded down: a truncating cast of the logarithm. The "
        "largest values of a block then lie above 448 and are clamped, down to half of what they "
        "were."},
    [ACT_QUANT_FLOOR_MISSING] = {"act-quant-floor-missing", "quant_act", "quant.act.1",
        WRONG_RELEASED,
        "The largest magnitude of a block is not raised to 1e-4. Blocks of tiny values keep digits "
        "that the released code loses; without any guard, a block of zeros would give 0 / 0."},
    [KV_QDQ_IDENTITY] = {"kv-qdq-identity", "quant_kv", "quant.kv.1", WRONG_RELEASED,
        "The scaled values are rounded to bf16 instead of E4M3, as in the first release of the "
        "inference code, so that they come back unchanged. About half of all values should "
        "change."},
    [KV_QDQ_ROPE_TOO] = {"kv-qdq-rope-too", "quant_kv", "quant.kv.1", WRONG_RELEASED,
        "The rotary values of an entry are quantised too: the whole vector goes into an FP8 cache. "
        "They are to stay bf16, as positions do not survive three bits of mantissa."},
    [KV_QDQ_BLOCK_128] = {"kv-qdq-block-128", "quant_kv", "quant.kv.1", WRONG_RELEASED,
        "Entries are quantised in blocks of 128, like the inputs of products, instead of 64. It "
        "shows where neighbouring blocks differ by a factor of 2^15 or more."},
    [INDEX_QDQ_MISSING] = {"index-qdq-missing", "quant_index", "quant.index.2", WRONG_RELEASED,
        "Indexer queries and keys are not put through FP4. Scores are finer than the model was "
        "trained with, and other entries are selected near the limit."},
    [INDEX_QDQ_WHOLE_HEAD] = {"index-qdq-whole-head", "quant_index", "quant.index.1",
        WRONG_RELEASED,
        "One scale is used for a whole indexer vector instead of one for 32 values. With two bits "
        "of magnitude, what is small becomes 0."},
    [LINEAR_TRANSPOSED] = {"linear-transposed", "linear_fp8", "linear.product.1", WRONG_BOTH,
        "A square matrix is multiplied from the other side: nothing in its shape tells. Other "
        "matrices give an error and are put right, so that the square ones stay behind."},
    [GROUPED_INTERLEAVED] = {"grouped-interleaved", "linear_grouped", "linear.grouped.1",
        WRONG_BOTH,
        "Group g takes every o_groups-th value of the input, as after a reshape to [in, groups] "
        "instead of [groups, in]. Each slice of the matrix sees a mixture of all groups."},
    [GROUPED_QUANTISED] = {"grouped-quantised", "linear_grouped", "linear.grouped.2",
        WRONG_RELEASED,
        "The input of wo_a is quantised because the checkpoint stores wo_a as FP8. The released "
        "code dequantises this matrix and multiplies in bf16."},
    /* rmsnorm */
    [RMSNORM_EPS_MISSING] = {"rmsnorm-eps-missing", "rmsnorm", "rmsnorm.weight.1", WRONG_BOTH,
        "The eps is left out. It shows in rows of small values only, and a row of zeros becomes "
        "NaN."},
    [RMSNORM_EPS_OUTSIDE_ROOT] = {"rmsnorm-eps-outside-root", "rmsnorm", "rmsnorm.weight.1",
        WRONG_BOTH,
        "The eps is added to the root instead of the mean square. It shows in rows of small values "
        "only, where sqrt(eps) would rule the result."},
    [RMSNORM_WEIGHT_PLUS_ONE] = {"rmsnorm-weight-plus-one", "rmsnorm", "rmsnorm.weight.2",
        WRONG_BOTH,
        "The result is multiplied with 1 + w, as in the Gemma family, whose code was taken over."},
    [RMSNORM_CENTRED] = {"rmsnorm-centred", "rmsnorm", "rmsnorm.weight.1", WRONG_BOTH,
        "The mean is subtracted first: LayerNorm instead of RMSNorm. Values of mean 0, as random "
        "tests have them, hardly tell."},
    [RMSNORM_SUM] = {"rmsnorm-sum", "rmsnorm", "rmsnorm.weight.1", WRONG_BOTH,
        "The squares are summed and not averaged: a unit vector instead of unit mean square. The "
        "result is smaller by the root of the width."},
    [HEAD_NORM_MISSING] = {"head-norm-missing", "rmsnorm_head", "rmsnorm.head.1", WRONG_BOTH,
        "Query heads are not normalised after wq_b. DeepSeek-V3 has no such step, and no tensor of "
        "the checkpoint tells of it. Attention becomes too sharp or too flat, head by head."},
    [HEAD_NORM_EPS_MISSING] = {"head-norm-eps-missing", "rmsnorm_head", "rmsnorm.head.1",
        WRONG_BOTH,
        "The eps is left out of the per-head normalisation. It shows in heads of small values, and "
        "a head of zeros becomes NaN."},
    [HEAD_NORM_ALL_HEADS] = {"head-norm-all-heads", "rmsnorm_head", "rmsnorm.head.1", WRONG_BOTH,
        "One norm is taken over all heads of a token, as in models that normalise queries before "
        "the split into heads. The sizes of the heads relative to each other remain."},
    [HEAD_NORM_BINARY32] = {"head-norm-binary32", "rmsnorm_head", "rmsnorm.head.2",
        WRONG_RELEASED | FINE_IN_BF16,
        "The per-head normalisation is done in binary32 with one rounding at the end, where the "
        "released code rounds every step to bf16. Better arithmetic, but whole heads differ by up "
        "to a bf16 step or two."},
    /* rope */
    [ROPE_HALF_SPLIT] = {"rope-half-split", "rope", "rope.rotate.1", WRONG_BOTH,
        "Pairs (i, i + R/2) are rotated instead of (2i, 2i + 1): the layout of most other models. "
        "Position 0 comes out right; all others do not."},
    [ROPE_FIRST_DIMS] = {"rope-first-dims", "rope", "rope.last.1", WRONG_BOTH,
        "The first R values of a head are rotated instead of the last, as in models with partial "
        "rotary embeddings whose rotary part comes first."},
    [ROPE_FREQUENCIES_INVERTED] = {"rope-frequencies-inverted", "rope_frequencies", "rope.freq.1",
        WRONG_BOTH,
        "theta^(2i/R) is used as the frequency and not divided into 1. Pair 0 is right, and the "
        "others spin so fast that positions are noise."},
    [ROPE_DIRECTION] = {"rope-direction", "rope", "rope.rotate.1", WRONG_BOTH,
        "Rotation by the negative angle: a sign in the wrong line of the 2 x 2 matrix, or the "
        "conjugate for the number. Among the rotated values sines change sign."},
    [ROPE_HEAD_DIM] = {"rope-head-dim", "rope_frequencies", "rope.freq.1", WRONG_BOTH,
        "The exponent is 2i / head_dim instead of 2i / qk_rope_head_dim: a rotary module made for "
        "whole heads. Frequencies fall far too slowly from pair to pair."},
    [ROPE_NEOX_TO_GPTJ] = {"rope-neox-to-gptj", "rope", "rope.rotate.1", WRONG_BOTH,
        "Interleaved pairs are rotated rightly but left sorted, all first members before all "
        "second ones, for a half-split kernel. Scores stay right; but the values are permuted, "
        "and the rotation back takes the wrong pairs."},
    [YARN_ON_SWA] = {"yarn-on-swa", "rope_frequencies", "rope.yarn.1", WRONG_BOTH,
        "YaRN changes the frequencies of SWA layers too: one rotary table for the whole model, as "
        "rope_scaling in the configuration suggests."},
    [YARN_MISSING] = {"yarn-missing", "rope_frequencies", "rope.yarn.1", WRONG_BOTH,
        "The frequencies of CSA and HCA layers are left unscaled: rope_scaling is not read, or "
        "only applied beyond the original length. Slow pairs turn up to 16 times too fast."},
    [YARN_MSCALE] = {"yarn-mscale", "rope", "rope.angle.2", WRONG_BOTH,
        "Cosine and sine are multiplied with 0.1 ln(factor) + 1, the temperature that YaRN usually "
        "brings. This model has none: the rotary part becomes 28 % too large."},
    [YARN_RAMP_REVERSED] = {"yarn-ramp-reversed", "rope_frequencies", "rope.yarn.4", WRONG_BOTH,
        "The ramp runs the other way: fast pairs are slowed down and slow ones kept, because it "
        "was taken for the share of the original frequency."},
    [YARN_CORRECTION_NOT_ROUNDED] = {"yarn-correction-not-rounded", "rope_frequencies",
        "rope.yarn.2", WRONG_BOTH,
        "The ends of the ramp are not rounded to whole pairs, as some YaRN code leaves them "
        "(truncate: false). Frequencies on the ramp are off by some percent."},
    [YARN_HIGH_CLAMPED_TO_PAIRS] = {"yarn-high-clamped-to-pairs", "rope_frequencies",
        "rope.yarn.2", WRONG_BOTH,
        "The upper end of the ramp is clamped to the last pair, R/2 - 1, where the rule says "
        "R - 1. With the released thetas it makes no difference; with a small theta it does."},
    [LINEAR_SCALING] = {"linear-scaling", "rope_frequencies", "rope.yarn.4", WRONG_BOTH,
        "All frequencies are divided by the factor: position interpolation in place of YaRN. Near "
        "tokens can no longer be told apart."},
    [COMPRESS_THETA_10000] = {"compress-theta-10000", "rope_frequencies", "rope.theta.1",
        WRONG_BOTH,
        "CSA and HCA layers use theta 10000, the rope_theta of the configuration, because "
        "compress_rope_theta is not read."},
    [COMPRESS_THETA_40000] = {"compress-theta-40000", "rope_frequencies", "rope.theta.1",
        WRONG_BOTH,
        "CSA and HCA layers use theta 40000, a default found in some code, because "
        "compress_rope_theta is not read. The released models have 160000."},
    /* hadamard, embed */
    [HADAMARD_UNSCALED] = {"hadamard-unscaled", "hadamard", "hadamard.scale.1", WRONG_BOTH,
        "The factor width^(-1/2) is left out: fast transforms have none of their own. Scores "
        "grow by the width, which no selection sees, but the vectors are wrong."},
    [HADAMARD_SEQUENCY] = {"hadamard-sequency", "hadamard", "hadamard.order.1", WRONG_BOTH,
        "The rows of the transform are in Walsh's order of sign changes, as a signal-processing "
        "library may have them. In exact no score changes; in released other values share the "
        "blocks of FP4."},
    [EMBED_SCALED] = {"embed-scaled", "embed", "embed.row.1", WRONG_BOTH,
        "Embeddings are multiplied with the root of the hidden size, as in the Gemma family and "
        "the first transformer."},
    [EMBED_FIRST_STREAM] = {"embed-first-stream", "embed", "embed.streams.1", WRONG_BOTH,
        "The embedding goes into the first residual stream only and the others start at 0, as a "
        "zeroed buffer would have it. All streams start as copies."},
    /* muon */
    [MUON_NO_NESTEROV] = {"muon-no-nesterov", "muon", "muon.nesterov.1", WRONG_BOTH,
        "The momentum buffer itself is orthogonalised: plain momentum, without the look ahead "
        "G + mu B."},
    [MUON_NO_POLISH] = {"muon-no-polish", "muon", "muon.orthogonal.3", WRONG_BOTH,
        "The last two iterations are left out. The first coefficients only bring singular values "
        "near 1, between about 0.7 and 1.2, and there they stay."},
    [MUON_QUINTIC_10] = {"muon-quintic-10", "muon", "muon.orthogonal.3", WRONG_BOTH,
        "All ten iterations use the first coefficients, as the common Muon does with its five. "
        "Singular values keep wandering around 1 instead of settling there."},
    [MUON_SCALE_MIN] = {"muon-scale-min", "muon", "muon.update.1", WRONG_BOTH,
        "The step is scaled by the root of the smaller side of the matrix instead of the larger. "
        "Square matrices do not tell."},
    [MUON_NO_DECAY] = {"muon-no-decay", "muon", "muon.update.1", WRONG_BOTH,
        "The weights do not decay: the first published Muon had no weight decay. With the usual "
        "learning rates one step hides it well."},
    [MUON_NOT_TRANSPOSED] = {"muon-not-transposed", "muon", "muon.transpose.1", WRONG_NOWHERE,
        "A tall matrix is orthogonalised as it is, without the transposition. The result is the "
        "same and only dearer: to be accepted."},
    [MUON_MOMENTUM_EMA] = {"muon-momentum-ema", "muon", "muon.momentum.1", WRONG_BOTH,
        "The buffer is a running average, mu B + (1 - mu) G, as in Adam. Orthogonalisation hides "
        "the scale of the buffer, but G weighs far too much beside it in the Nesterov update."},

    [MHC_NORM_ONE_STREAM] = {"mhc-norm-one-stream", "mhc_mix", "mhc.mix.1", WRONG_BOTH,
        "The reciprocal root is that of one stream's D values. A stream is what every other "
        "norm of the model sees, so the norm is written for that width. The mix is off by the "
        "ratio of the streams' magnitudes."},
    [MHC_NORM_MISSING] = {"mhc-norm-missing", "mhc_mix", "mhc.mix.1", WRONG_BOTH,
        "The streams are mapped by fn as they are. There is no norm weight in the checkpoint "
        "that would remind of the norm. The mix grows with the residual, and layer by layer "
        "sigmoids and softmax saturate."},
    [MHC_NORM_EPS_MISSING] = {"mhc-norm-eps-missing", "mhc_mix", "mhc.mix.1", WRONG_BOTH,
        "The mean of squares stands under the root without rms_norm_eps. A norm without a "
        "weight is written out by hand, and the eps is lost. It shows only where the streams "
        "are small, and zeros become NaN."},
    [MHC_PRE_NO_EPS] = {"mhc-pre-no-eps", "mhc_mix", "mhc.mix.2", WRONG_BOTH,
        "hc_eps is not added to pre. It looks like one more guard of a division, and there is "
        "none here. Where a gate is shut the stream should still seep through with weight "
        "hc_eps."},
    [MHC_PRE_SOFTMAX] = {"mhc-pre-softmax", "mhc_mix", "mhc.mix.2", WRONG_BOTH,
        "pre is a softmax over the streams, as mixing weights often are. The streams then "
        "compete, where the model opens each by a sigmoid of its own."},
    [MHC_POST_NO_FACTOR] = {"mhc-post-without-factor-2", "mhc_mix", "mhc.mix.3", WRONG_BOTH,
        "post is the sigmoid itself: the factor 2, which lets the gate rest at 1, was "
        "overlooked. Every sublayer adds half of what it should."},
    [MHC_POST_EPS] = {"mhc-post-with-eps", "mhc_mix", "mhc.mix.3", WRONG_BOTH,
        "hc_eps is added to post as it is to pre, because both come out of one helper function. "
        "A shut gate lets hc_eps of the sublayer's output through."},
    [MHC_SCALES_SWAPPED] = {"mhc-scales-swapped", "mhc_mix", "mhc.mix.2", WRONG_BOTH,
        "hc_scale[0] goes to post and hc_scale[1] to pre. The three scales have no names in the "
        "checkpoint, and the order is taken from a figure or a signature."},
    [MHC_ONE_SCALE] = {"mhc-one-scale", "mhc_mix", "mhc.mix.3", WRONG_BOTH,
        "hc_scale[0] multiplies the whole mix. The head's scale has one element, and the "
        "layers' is read in the same way: post and comb get the scale of pre."},
    [MHC_BASE_MISSING] = {"mhc-base-missing", "mhc_mix", "mhc.mix.2", WRONG_BOTH,
        "hc_base is not added. Random test weights with a small base hide it; in a trained "
        "model the base carries most of pre, post and comb."},
    [MHC_LAYOUT_COMB_FIRST] = {"mhc-layout-comb-first", "mhc_mix", "mhc.mix.1", WRONG_BOTH,
        "The (2 + n) n values are read as comb, pre, post where they are pre, post, comb. All "
        "of them have plausible magnitudes, so nothing but the values tells."},
    [SINKHORN_NO_SOFTMAX_EPS] = {
        "sinkhorn-softmax-without-eps", "mhc_sinkhorn", "mhc.sinkhorn.1", WRONG_BOTH,
        "The eps after the softmax is left out, since a softmax needs none. Entries that are "
        "nearly 0 stay so, and the columns that live on them are scaled up in vain."},
    [SINKHORN_EPS_MISSING] = {"sinkhorn-eps-missing", "mhc_sinkhorn", "mhc.sinkhorn.2", WRONG_BOTH,
        "Neither the softmax nor the sums get hc_eps: the textbook's iteration. Columns sum to "
        "1 exactly, and small entries miss their floor."},
    [SINKHORN_ROWS_LAST] = {"sinkhorn-rows-last", "mhc_sinkhorn", "mhc.sinkhorn.3", WRONG_BOTH,
        "Every round is columns, then rows: the order of a formula rows(columns(C)). The "
        "iteration then ends with rows that sum to 1 and columns that nearly do. After "
        "convergence the two agree, so easy matrices hide it."},
    [SINKHORN_ONE_FEWER] = {
        "sinkhorn-one-iteration-fewer", "mhc_sinkhorn", "mhc.sinkhorn.3", WRONG_BOTH,
        "The loop runs hc_sinkhorn_iters - 2 times, often because the softmax with its column "
        "step was not counted as the first iteration and the loop was then corrected twice. It "
        "shows where the matrix has not converged."},
    [SINKHORN_ONE_MORE] = {
        "sinkhorn-one-iteration-more", "mhc_sinkhorn", "mhc.sinkhorn.3", WRONG_BOTH,
        "The loop after the softmax and its column step runs hc_sinkhorn_iters times: the "
        "softmax was not counted as the first row step. It shows where the matrix has not "
        "converged."},
    [SINKHORN_SOFTMAX_COLUMNS] = {
        "sinkhorn-softmax-over-columns", "mhc_sinkhorn", "mhc.sinkhorn.1", WRONG_BOTH,
        "The softmax runs over j, the first index, where it should run over k: the wrong axis "
        "of a square matrix. The iterations after it wash most of that out."},
    [SINKHORN_PLAIN_EXP] = {"sinkhorn-plain-exp", "mhc_sinkhorn", "mhc.sinkhorn.1", WRONG_BOTH,
        "The iteration starts from exp(C), as the literature has it, and not from a softmax of "
        "the rows. The first row step is missing, hc_eps weighs differently in every row, and "
        "large logits overflow."},
    [COMB_NOT_TRANSPOSED] = {"comb-not-transposed", "mhc_post", "mhc.post.1", WRONG_BOTH,
        "The new stream k is sum_j C[k, j] x[j]: the matrix times the streams, as everybody "
        "writes it. C is nearly doubly stochastic, so the transpose is as stable, and wrong."},
    [MHC_POST_IN_PLACE] = {"mhc-post-in-place", "mhc_post", "mhc.post.1", WRONG_BOTH,
        "The new streams are written over the old ones while these are still needed. Stream 0 "
        "is right, and every later one mixes what has been updated already."},
    [MHC_POST_NO_RESIDUAL_MIX] = {"mhc-post-without-comb", "mhc_post", "mhc.post.1", WRONG_BOTH,
        "Each stream keeps its own residual, x[k] + post[k] y, as in a plain residual "
        "connection. comb is computed and then not used."},
    [MHC_PRE_MEAN] = {"mhc-pre-mean", "mhc_pre", "mhc.pre.1", WRONG_BOTH,
        "The sublayer's input is the mean of the streams, and pre is not used. A port starts so "
        "before the mix works, and nothing fails if it stays so."},
    [MHC_STATIC] = {"mhc-static", "mhc_mix", "mhc.mix.1", WRONG_BOTH,
        "Only hc_base decides: the map fn, the part that depends on the token, was left out, as "
        "in the static form of hyper-connections. All tokens are mixed alike."},
    [GATE_BIAS_IN_WEIGHT] = {"gate-bias-in-weight", "gate_score", "gate.weight.1", WRONG_BOTH,
        "The routing weights are made of the biased scores, which are at hand after the top-k. "
        "The choice is right, the weights are tilted to experts that were starved in training."},
    [GATE_BIAS_IGNORED] = {"gate-bias-ignored", "gate_score", "gate.topk.1", WRONG_BOTH,
        "The top-k is taken of the scores without the bias: a converter dropped gate.bias, or "
        "the code knows only gates without one. Many tokens go to other experts."},
    [GATE_NOT_NORMALISED] = {
        "gate-weights-not-normalised", "gate_score", "gate.weight.1", WRONG_BOTH,
        "The chosen scores are not divided by their sum. With softmax gates over all experts "
        "that is an option; here scores are of order 1, and the experts' sum comes out several "
        "times too large."},
    [GATE_SCALE_MISSING] = {
        "routed-scaling-factor-missing", "gate_score", "gate.weight.1", WRONG_BOTH,
        "routed_scaling_factor is not applied: older models have 1 there. The routed experts "
        "count for two thirds of what they should beside the shared one (Flash)."},
    [GATE_SOFTMAX] = {"gate-softmax", "gate_score", "gate.score.1", WRONG_BOTH,
        "The scores are a softmax over all experts, as in most mixtures and in this family's "
        "second generation. With the bias added they choose other experts and weigh them "
        "differently."},
    [GATE_SIGMOID] = {"gate-sigmoid", "gate_score", "gate.score.1", WRONG_BOTH,
        "The scores are sigmoids, as in the generation before. scoring_func says sqrtsoftplus; "
        "code that does not read it runs without complaint."},
    [GATE_NO_ROOT] = {"gate-softplus-without-root", "gate_score", "gate.score.1", WRONG_BOTH,
        "The scores are softplus of the logits, without the root. Large ones dominate the "
        "weights, and beside the bias the ranking changes."},
    [GATE_ALWAYS_NORMALISED] = {"norm-topk-prob-ignored", "gate_score", "gate.weight.2", WRONG_BOTH,
        "The division by the sum is done whatever norm_topk_prob says. No released model says "
        "false, so only a fine-tune or a test can tell."},
    [GATE_BF16_SCORES] = {"gate-logits-bf16", "gate_score", "gate.score.1", WRONG_BOTH | FINE_IN_BF16,
        "The gate is an ordinary bf16 linear, so its logits are rounded to bf16 before the "
        "score. Close experts tie or change places, and a few tokens are routed differently; "
        "the released code keeps binary32 here. In exact it is what any bf16 engine may do."},
    [HASH_BY_SCORE] = {"hash-layer-by-score", "gate_hash", "gate.hash.1", WRONG_BOTH,
        "The first num_hash_layers layers choose by score as all the others do: tid2eid was not "
        "loaded, or taken for a bookkeeping table. The scores are there, so nothing looks "
        "broken."},
    [HASH_UNIFORM] = {"hash-uniform-weights", "gate_hash", "gate.weight.1", WRONG_BOTH,
        "Experts chosen by the table get equal weights, since no top-k has scored them. In this "
        "model hash layers weigh by the gate's scores like all layers."},
    [LIMIT_MISSING] = {"swiglu-limit-missing", "expert", "expert.clamp.1", WRONG_BOTH,
        "swiglu_limit is not applied: the activation of earlier models. Most tokens never reach "
        "the limit; those that do let one expert swamp the sum."},
    [LIMIT_ON_SILU] = {"swiglu-limit-on-silu", "expert", "expert.clamp.1", WRONG_BOTH,
        "The limit is put on silu(g) where it belongs on g. silu(g) nearly equals g where g is "
        "large, so with a limit of 10 the two can hardly be told apart; with a small one they "
        "can."},
    [LIMIT_G_BOTH_SIDES] = {"swiglu-limit-on-g-both-sides", "expert", "expert.clamp.1", WRONG_BOTH,
        "g is clamped from below too, by the one helper that clamps v. silu of anything below "
        "-10 is almost 0, and so is silu(-10): only a small limit shows it."},
    [LIMIT_V_ONE_SIDE] = {"swiglu-limit-on-v-one-side", "expert", "expert.clamp.1", WRONG_BOTH,
        "v is clamped from above only, as g is. Large negative values pass, and with them half "
        "of the outliers that the limit is there for."},
    [LIMIT_0_CLAMPS] = {"swiglu-limit-0-clamps", "expert", "expert.clamp.1", WRONG_BOTH,
        "A limit of 0, which means none, is applied as a limit: v becomes 0, and the experts "
        "are silent. It comes from a default of 0 for an absent key together with a clamp "
        "without a condition."},
    [EXPERT_W1_W3_SWAPPED] = {"expert-w1-w3-swapped", "expert", "expert.in.1", WRONG_BOTH,
        "w3 is taken for the gate and w1 for the values. Names like gate_proj and up_proj are "
        "mapped to w1, w2, w3 by guess, and both have the same shape."},
    [EXPERT_GELU] = {"expert-gelu", "expert", "expert.act.1", WRONG_BOTH,
        "The activation is GELU. Its curve is so near to SiLU's that shapes and magnitudes give "
        "no hint; every value is a little off."},
    [WEIGHT_AFTER_W2] = {"routing-weight-after-w2", "expert", "expert.act.2", WRONG_RELEASED,
        "The routing weight multiplies the expert's output, as in most mixtures. In exact that "
        "is the same. In released w2 quantises its input, and the unweighted activation falls "
        "on other codes."},
    [WEIGHT_ON_INPUT] = {"routing-weight-on-input", "expert", "expert.act.2", WRONG_BOTH,
        "The routing weight multiplies the token before w1 and w3, which some fused kernels "
        "offer as an option. The SwiGLU is no linear map, so the weight goes in wrongly, and "
        "about squared."},
    [SHARED_UNCLAMPED] = {"shared-expert-unclamped", "expert", "moe.shared.1", WRONG_BOTH,
        "The shared expert is computed without the limit, as the very first release of the "
        "inference code did. It shows where an activation of the shared expert passes the "
        "limit."},
    [SHARED_WEIGHTED] = {"shared-expert-weighted", "moe", "moe.shared.1", WRONG_BOTH,
        "routed_scaling_factor multiplies the shared expert's output too: it was applied to the "
        "finished sum, or to the shared expert as to the k + 1st of the chosen."},
    [SHARED_MISSING] = {"shared-expert-missing", "moe", "moe.shared.1", WRONG_BOTH,
        "The shared expert is not added. A loader that looks for ffn.experts only never misses "
        "it."},
    [MOE_HASH_IGNORED] = {"moe-hash-without-token-id", "moe", "gate.hash.1", WRONG_BOTH,
        "The mixture is not told the token ids, which no other sublayer needs, and hash layers "
        "look up row 0 of tid2eid for all tokens. Every token takes the same experts there."},
    [HEAD_NORM_FIRST] = {"head-norm-before-collapse", "head", "head.norm.1", WRONG_BOTH,
        "Every stream is normalised with norm.weight, then they are collapsed, and the sum is "
        "not normalised again. The streams' relative magnitudes are lost and the logits are "
        "scaled by how far the gates are open."},
    [HEAD_NO_EPS] = {"hc-head-without-eps", "head", "head.mix.2", WRONG_BOTH,
        "hc_eps is not added to the head's pre. The norm behind hides any common factor, so it "
        "shows only where the gates of some streams are all but shut."},
    [HEAD_MEAN] = {"head-mean-of-streams", "head", "head.collapse.1", WRONG_BOTH,
        "The head takes the mean of the streams, as plain hyper-connections end in their sum, "
        "and the hc_head weights stay unused."},
    [HEAD_SINKHORN_MIX] = {"head-softmax-mix", "head", "head.mix.2", WRONG_BOTH,
        "The head's pre is a softmax over the streams, the first step of the layers' comb, "
        "where it should be sigmoids like the layers' pre. The streams' proportions change."},
    [HEAD_FIRST_STREAM] = {"head-first-stream", "head", "head.collapse.1", WRONG_BOTH,
        "The head reads stream 0 and drops the others. At the embedding all streams are equal, "
        "so a test with no layers passes."},

    [HEAD_NORM_WEIGHTED] = {"head-norm-weighted", "attention_swa", "rmsnorm.head.1", WRONG_BOTH,
        "Query heads are multiplied with kv_norm.weight after their normalisation. A module of a "
        "norm brings a weight, and that one has the right width; but queries have none."},
    [OUTPUT_NOT_ROTATED_BACK] = {"output-not-rotated-back", "attention_output",
        "attention.out.1", WRONG_BOTH,
        "The attention's output keeps the rotation of its values. Elsewhere values are not "
        "rotated, so nobody rotates an output back; here keys are values. Without the inverse "
        "the output depends on absolute positions."},
    [OUTPUT_ROTATED_FORWARD] = {"output-rotated-forward", "attention_output",
        "attention.out.1", WRONG_BOTH,
        "The output is rotated by the position once more, not back: the same routine is called "
        "without the conjugate. Right at position 0 only."},

    [COMPRESSED_AT_GROUP_INDEX] = {"compressed-at-group-index", "compressor_entry",
        "compressor.entry.3", WRONG_BOTH,
        "Compressed entry g is rotated at position g instead of g r, as if entries were tokens. "
        "Group 0 is right."},
    [COMPRESSED_AT_LAST_TOKEN] = {"compressed-at-last-token", "compressor_entry",
        "compressor.entry.3", WRONG_BOTH,
        "An entry is rotated at the position of the token that completed its group, the one at "
        "hand when it is emitted, instead of that of the group's first token."},
    [COMPRESSED_NOT_ROTATED] = {"compressed-not-rotated", "compressor_entry",
        "compressor.entry.3", WRONG_BOTH,
        "Compressed entries are stored as pooled and normalised, without a rotation: a summary "
        "of several tokens seems to have no position. Wrong from group 1 on."},
    [COMPRESSOR_NORM_MISSING] = {"compressor-norm-missing", "compressor_entry",
        "compressor.entry.2", WRONG_BOTH,
        "Pooled entries are not normalised: the compressor's own norm is overlooked beside the "
        "layer's."},
    [COMPRESSOR_NORM_AFTER_ROPE] = {"compressor-norm-after-rope", "compressor_entry",
        "compressor.entry.2", WRONG_BOTH,
        "An entry is rotated first and normalised then. The root mean square is the same, so "
        "only the weights of the rotary values, which now meet other values, tell."},
    [COMPRESSOR_QDQ_MISSING] = {"compressor-qdq-missing", "compressor_entry",
        "compressor.entry.4", WRONG_RELEASED,
        "Window entries pass the FP8 QDQ, compressed ones do not: they are written to their "
        "cache by another routine."},
    [COMPRESSOR_HADAMARD_MISSING] = {"compressor-hadamard-missing", "compressor_entry",
        "compressor.entry.4", WRONG_BOTH,
        "Indexer keys are not transformed, while indexer queries are. Scores are then products "
        "of vectors in different bases, and the selection is arbitrary."},
    [OVERLAP_SWAPPED] = {"overlap-swapped", "compressor_csa", "compressor.csa.1", WRONG_BOTH,
        "The previous group is pooled by channels d to 2d-1 and the current one by 0 to d-1. The "
        "order of time is that of the channels: the first half belongs to the earlier group."},
    [OVERLAP_FROM_CURRENT] = {"overlap-from-current", "compressor_csa",
        "compressor.csa.1", WRONG_BOTH,
        "Both halves of the channels are taken from the current group's tokens: the 2 r items "
        "are there, but nothing overlaps."},
    [OVERLAP_MISSING] = {"overlap-missing", "compressor_csa", "compressor.csa.1", WRONG_BOTH,
        "CSA entries pool their own group only, by the second half of the channels, as if every "
        "group were the first."},
    [OVERLAP_GROUP_0_ZEROS] = {"overlap-group-0-zeros", "compressor_csa",
        "compressor.csa.2", WRONG_BOTH,
        "The missing previous group of group 0 counts as r items of value 0 and logit 0 instead "
        "of weight 0: a buffer of zeros whose logits should be minus infinity. Only entry 0 of a "
        "sequence is wrong."},
    [APE_MISSING] = {"ape-missing", "compressor_csa", "compressor.items.2", WRONG_BOTH,
        "The logits of the pooling lack the position bias ape."},
    [APE_FROM_CALL] = {"ape-from-call", "compressor_csa", "compressor.items.2", WRONG_BOTH,
        "The row of ape is counted from the first token of the call instead of from the start of "
        "the sequence. Right for a whole prompt at once; wrong when a call begins inside of a "
        "group, as in decoding."},
    [APE_ON_VALUES] = {"ape-on-values", "compressor_csa", "compressor.items.2", WRONG_BOTH,
        "ape is added to the values a instead of the logits z, as a position embedding would be."},
    [SOFTMAX_OVER_CHANNELS] = {"softmax-over-channels", "compressor_csa",
        "compressor.softmax.1", WRONG_BOTH,
        "The softmax runs over the channels of each item, the last axis, which is a softmax's "
        "default, instead of over the items of each channel."},
    [SOFTMAX_PER_HALF] = {"softmax-per-half", "compressor_csa", "compressor.softmax.1", WRONG_BOTH,
        "Previous and current group are pooled by a softmax each, and the two results averaged. "
        "Every group then weighs one half whatever its logits say. Group 0 is right."},
    [COMPRESSOR_MEAN] = {"compressor-mean", "compressor_csa", "compressor.softmax.1", WRONG_BOTH,
        "Items are averaged with equal weights: wgate and ape are not used."},
    [PARTIAL_GROUP] = {"partial-group", "compressor_csa", "compressor.group.1", WRONG_BOTH,
        "A group that a call leaves unfinished emits an entry of what has come, and keeps it "
        "when the rest comes. Prompts padded to a multiple of r come to this; decoding then "
        "pools single tokens."},
    [COMPRESSOR_STATE_LOST] = {"compressor-state-lost", "compressor_csa",
        "state.compressor.1", WRONG_BOTH,
        "What an unfinished group, and in CSA the group before, have collected is forgotten "
        "between calls. An entry whose group straddles a call pools the rest of it."},
    [COMPRESSOR_COUNTS_PADDING] = {"compressor-counts-padding", "compressor_csa",
        "compressor.group.1", WRONG_BOTH,
        "In a batch padded in front the compressor counts the padding as tokens: groups begin at "
        "the padding, pool it, and stand as many positions too late. The window is masked and "
        "stays right. Found in transformers 5.23.0."},
    [COMPRESSOR_POOLS_PADDING] = {"compressor-pools-padding", "compressor_csa",
        "compressor.group.1", WRONG_BOTH,
        "In a batch padded in front groups begin at the padding and pool it; but an entry stands "
        "at the position of its first token, or at 0 where that is padding. Found in "
        "nano-deepseek-v4 0.2.0."},
    [COMPRESSED_THETA_MAIN] = {"compressed-theta-main", "compressor_entry",
        "rope.theta.1", WRONG_BOTH,
        "Compressed entries are rotated with rope_theta and without YaRN, while queries and "
        "window keys use the layer's frequencies: the compressor has been given the model's "
        "default table."},

    [INDEX_QUERY_NOT_ROTATED] = {"index-query-not-rotated", "indexer_query",
        "indexer.query.2", WRONG_BOTH,
        "Indexer queries are not rotated, though their keys are. Scores lose the relative "
        "position, and other entries are selected."},
    [INDEX_QUERY_NORMALISED] = {"index-query-normalised", "indexer_query",
        "indexer.query.1", WRONG_BOTH,
        "Indexer query heads are normalised like those of the attention. Heads then enter the "
        "score with other weights."},
    [INDEX_HADAMARD_MISSING] = {"index-hadamard-missing", "indexer_query",
        "indexer.query.3", WRONG_BOTH,
        "Indexer queries are not transformed, while keys are: products of vectors in different "
        "bases. To leave both out would be harmless in exact, and lose precision in released."},
    [INDEX_SCALE_MISSING] = {"index-scale-missing", "indexer_weights",
        "indexer.weight.2", WRONG_NOWHERE,
        "The factor d_i^(-1/2) n_i^(-1/2) of the weights is left out. One positive factor "
        "changes no order of scores, so this is not a mistake."},
    [INDEX_RELU_MISSING] = {"index-relu-missing", "indexer_score", "indexer.score.1", WRONG_BOTH,
        "The score adds w[h] iq[h] . key without the relu. Heads that dislike an entry then "
        "cancel those that want it."},
    [INDEX_RELU_AFTER_WEIGHT] = {"index-relu-after-weight", "indexer_score",
        "indexer.score.1", WRONG_BOTH,
        "The relu is taken of w[h] iq[h] . key. Weights may be negative: a head that should "
        "count against an entry is dropped, and one with a negative product counts for it."},
    [INDEX_RELU_AFTER_SUM] = {"index-relu-after-sum", "indexer_score",
        "indexer.score.1", WRONG_BOTH,
        "The relu is taken of the sum over heads, at the end, where it only turns negative "
        "scores to ties at 0."},
    [INDEX_WEIGHT_SIGMOID] = {"index-weight-sigmoid", "indexer_weights",
        "indexer.weight.1", WRONG_BOTH,
        "The heads' weights pass a sigmoid, as gates elsewhere do. They lose their sign and most "
        "of their spread."},
    [INDEX_ONE_HEAD] = {"index-one-head", "indexer_score", "indexer.score.1", WRONG_BOTH,
        "Only the first head scores, as if the indexer had one query head as it has one key head."},
    [INDEX_NOT_CAUSAL] = {"index-not-causal", "indexer_select", "indexer.select.1", WRONG_BOTH,
        "The best entries are taken of all that the call has made, and those that the token may "
        "not see are masked afterwards: too few remain. Invisible in decoding, where there are "
        "no later entries."},
    [INDEX_LOWEST] = {"index-lowest", "indexer_select", "indexer.select.1", WRONG_BOTH,
        "The entries of the lowest scores are kept: a sort that ascends. Invisible while "
        "index_topk or fewer entries are visible."},
    [INDEX_TOPK_MINUS_ONE] = {"index-topk-minus-one", "indexer_select",
        "indexer.select.1", WRONG_BOTH,
        "One entry fewer than index_topk is kept. The last place is spent on something else, "
        "such as the token's own group, or the bound of a loop is off by one."},
    [INDEX_FROM_X] = {"index-from-x", "attention_csa", "indexer.query.1", WRONG_BOTH,
        "Indexer queries are made of the low-rank query before its norm: the tensor is handed on "
        "a step too early."},

    [SINK_MISSING] = {"sink-missing", "core_attn", "core_attn.sink.1", WRONG_BOTH,
        "attn_sink is not used: a stock softmax attention. Every head must then spend all of its "
        "weight on entries."},
    [SINK_IN_NUMERATOR] = {"sink-in-numerator", "core_attn", "core_attn.sink.1", WRONG_BOTH,
        "The sink joins the numerator too, as if it had a value of ones. It has no value: it "
        "takes weight away and gives nothing."},
    [SINK_AS_ENTRY] = {"sink-as-entry", "core_attn", "core_attn.sink.1", WRONG_BOTH,
        "The sink is added to the logit of the list's first entry, as a bias that keeps the "
        "first token attractive. That is another method of the same name."},
    [SINK_SCALED] = {"sink-scaled", "core_attn", "core_attn.sink.1", WRONG_BOTH,
        "The sink is multiplied with d^(-1/2) like the logits: it was appended to them before "
        "the scale. Invisible where the sink is 0."},
    [SINK_OF_HEAD_0] = {"sink-of-head-0", "core_attn", "core_attn.sink.1", WRONG_BOTH,
        "All heads use the sink of head 0: a wrong broadcast, or an offset that a split of heads "
        "over devices forgot."},
    [ATTENTION_SCALE_MISSING] = {"attention-scale-missing", "core_attn",
        "core_attn.logit.1", WRONG_BOTH,
        "Logits are not multiplied with d^(-1/2): queries are normalised, which looks like "
        "enough. The softmax becomes nearly a maximum."},
    [ATTENTION_SCALE_NOPE] = {"attention-scale-nope", "attention_swa",
        "core_attn.logit.1", WRONG_BOTH,
        "The scale is (d - R)^(-1/2), by the values that are not rotary. head_dim counts both "
        "kinds, and so does the scale."},
    [ATTENTION_MSCALE] = {"attention-mscale", "attention_csa", "rope.angle.2", WRONG_BOTH,
        "Logits of CSA and HCA layers are multiplied with (0.1 ln factor + 1)^2, YaRN's "
        "attention temperature, as in the predecessor. This model has none."},
    [EMPTY_SLOTS_COUNT] = {"empty-slots-count", "core_attn", "core_attn.list.2", WRONG_BOTH,
        "Slots of the window that hold no token are attended to as zero vectors with logit 0. "
        "They take weight from the first W - 1 tokens of a sequence, and from no later one."},
    [WINDOW_127] = {"window-127", "attention_swa", "core_attn.list.1", WRONG_BOTH,
        "The window is one token too narrow: the token's own is counted besides W others, or a "
        "strict bound is. Invisible before token W - 1."},
    [WINDOW_129] = {"window-129", "attention_swa", "core_attn.list.1", WRONG_BOTH,
        "The window is one token too wide: W tokens before the own one. Invisible before token W."},
    [WINDOW_PAST_ONLY] = {"window-past-only", "attention_swa", "core_attn.list.1", WRONG_BOTH,
        "A token sees the W tokens before it but not itself: attention ran before its entry was "
        "written to the cache."},
    [VISIBLE_EARLY] = {"visible-early", "indexer_select", "compressor.visible.1", WRONG_BOTH,
        "A group is seen one token before its last: that token looks into the future, which "
        "prefill permits and decoding cannot."},
    [VISIBLE_LATE] = {"visible-late", "indexer_select", "compressor.visible.1", WRONG_BOTH,
        "A group is not seen by its own last token, only from the next on: t div r groups are "
        "visible instead of (t + 1) div r. Wrong for one token in r."},
    [HCA_WITH_INDEXER] = {"hca-with-indexer", "attention_hca", "attention.hca.1", WRONG_BOTH,
        "HCA layers attend to a selection of entries, here the latest, as CSA layers do. They "
        "have no indexer, and attend to all that are visible."},
    [CSA_WITHOUT_INDEXER] = {"csa-without-indexer", "attention_csa", "attention.csa.1", WRONG_BOTH,
        "CSA layers attend to all visible entries, without a selection. Invisible while there "
        "are no more than index_topk of them: up to 2051 tokens in the released model."},
    [COMPRESSED_IGNORED] = {"compressed-ignored", "attention_csa", "attention.csa.1", WRONG_BOTH,
        "CSA and HCA layers attend to their window only, like SWA layers. Short prompts read "
        "well; what left the window is forgotten."},
    [OUTPUT_GROUPS_INTERLEAVED] = {"output-groups-interleaved", "attention_output",
        "attention.out.2", WRONG_BOTH,
        "Heads are dealt to the groups of wo_a in turn instead of in consecutive runs: a reshape "
        "with its two axes the other way round."},
    [Q_NORM_MISSING] = {"q-norm-missing", "attention_swa", "attention.query.1", WRONG_BOTH,
        "The low-rank query is not normalised by q_norm. The later normalisation of each head "
        "hides the scale; the weights of q_norm still tell."},
    [KV_NORM_MISSING] = {"kv-norm-missing", "attention_swa", "attention.kv.1", WRONG_BOTH,
        "Window entries are not normalised by kv_norm."},
    [KV_NOT_ROTATED] = {"kv-not-rotated", "attention_swa", "attention.kv.2", WRONG_BOTH,
        "Window entries are not rotated, though queries and compressed entries are: values are "
        "not rotated elsewhere, and here they are the keys."},
    [KEYS_ONLY_ROTATED] = {"keys-only-rotated", "attention_swa", "attention.out.1", WRONG_BOTH,
        "Keys are rotated, values are not, and the output is not rotated back: the usual "
        "attention. Here a value keeps its rotation, so that the output carries relative "
        "positions."},
    [POSITIONS_FROM_CALL] = {"positions-from-call", "attention_swa",
        "attention.query.3", WRONG_BOTH,
        "Positions of queries and window keys are counted from the start of the call. Within one "
        "call nothing changes, for only differences count; across calls all distances are wrong."},
    [RING_ONE_SHORT] = {"ring-one-short", "attention_swa", "state.window.1", WRONG_BOTH,
        "The ring's oldest entry is overwritten too early, so that in later calls a token sees W "
        "- 1 tokens. The first call, which needs no ring, is right."},
    [STATE_NOT_RESET] = {"state-not-reset", "attention_swa", "state.sequence.1", WRONG_BOTH,
        "A new sequence finds the window of the one before: the slots that it has not filled yet "
        "hold that one's last tokens. Right again from token W - 1 on."},
    [SEQUENCES_MIXED] = {"sequences-mixed", "attention_swa", "state.sequence.1", WRONG_BOTH,
        "Rows of several sequences in one call are taken for one sequence: the window reaches "
        "into the rows before, whosesoever they are. The mask of packed prompts is missing."},

    [BLOCK_HC_SWAPPED] = {"block-hc-swapped", "block", "block.attention.1", WRONG_BOTH,
        "The hyper-connections change places: hc_ffn stands around attention, and hc_attn around "
        "the mixture. Both have the same shapes, so nothing complains."},
    [BLOCK_NORM_MISSING] = {"block-norm-missing", "block", "block.attention.1", WRONG_BOTH,
        "attn_norm and ffn_norm are left out, as if the norm inside the mHC mix, which only scales "
        "its logits, were the sublayer's."},
    [MTP_SAME_TOKEN] = {"mtp-same-token", "mtp", "mtp.embed.1", WRONG_BOTH,
        "Step t embeds token t, the one whose streams it has, and not token t + 1: ids were passed "
        "on without the shift. Drafts are accepted far less often, and nothing else shows."},
    [MTP_MAIN_NORM] = {"mtp-main-norm", "mtp", "mtp.head.1", WRONG_BOTH,
        "The head of MTP takes the model's norm.weight, since the head matrix is shared too. MTP "
        "has a norm of its own."},
    [MTP_H_NORM_MISSING] = {"mtp-h-norm-missing", "mtp", "mtp.stream.1", WRONG_BOTH,
        "The streams go into h_proj without hnorm. Their magnitude grows with depth, so they drown "
        "the embedding."},
    [MTP_POSITION_PLUS_ONE] = {"mtp-position-plus-one", "mtp", "mtp.block.1", WRONG_BOTH,
        "MTP's block runs at position t + 1, that of the token it embeds. In a layer without "
        "compression a constant shift cancels: only q and kv tell, no logit does."},
    [MTP_PROJECTIONS_SWAPPED] = {"mtp-projections-swapped", "mtp", "mtp.stream.2", WRONG_BOTH,
        "e_proj is applied to the streams and h_proj to the embedding. Implementations with one "
        "joint projection of both split it in the other order."},
    [MTP_COLLAPSED] = {"mtp-collapsed", "mtp", "mtp.stream.1", WRONG_BOTH,
        "The streams are averaged before h_proj, and every stream of MTP's block starts the same, "
        "as after an embedding. Models without hyper-connections hand over one hidden state."},
    [MTP_MAIN_HC_HEAD] = {"mtp-main-hc-head", "mtp", "mtp.head.1", WRONG_BOTH,
        "MTP's streams collapse with the model's hc_head in place of their own. The names are the "
        "same but for the prefix mtp.0."},

    [FP4_INPUT_NOT_QUANTISED] = {"fp4-input-not-quantised", "linear_fp4", "linear.quant.1",
        WRONG_RELEASED,
        "The input of FP4 products stays bf16, as in weight-only kernels for experts; the model was "
        "trained with FP8 inputs there too."},
    [YARN_BETAS_SWAPPED] = {"yarn-betas-swapped", "rope_frequencies", "rope.yarn.2", WRONG_BOTH,
        "beta_fast and beta_slow are exchanged: the ramp begins where it should end."},
    [MHC_POST_EPS_FOR_TWO] = {"mhc-post-eps-for-two", "mhc_mix", "mhc.mix.3", WRONG_BOTH,
        "post is computed as pre is: sigmoid + hc_eps, without the factor 2. One function serves "
        "both. Found in nano-deepseek-v4 0.2.0."},
    [MHC_PRE_FACTOR_2] = {"mhc-pre-factor-2", "mhc_mix", "mhc.mix.2", WRONG_BOTH,
        "pre gets the factor 2 of post: one function serves both, the other way."},
    [MHC_CHANNELS_FIRST] = {"mhc-channels-first", "mhc_mix", "mhc.mix.1", WRONG_BOTH,
        "The streams are flattened channel by channel instead of stream by stream, as where they "
        "are stored [D, n]."},
    [SINKHORN_COLUMN_MAJOR] = {"sinkhorn-column-major", "mhc_sinkhorn", "mhc.mix.4", WRONG_BOTH,
        "The logits of comb are read as [k, j]: the softmax then runs over the wrong index and the "
        "matrix is another one, not only the transpose."},
    [SINKHORN_SIGMOID_START] = {"sinkhorn-sigmoid-start", "mhc_sinkhorn", "mhc.sinkhorn.1",
        WRONG_BOTH,
        "The matrix starts as sigmoid + eps instead of the softmax of its rows, and all rounds "
        "divide rows, then columns. Found in nano-deepseek-v4 0.2.0."},
    [ATTENTION_THETA_MAIN] = {"attention-theta-main", "attention_output", "rope.theta.1", WRONG_BOTH,
        "In CSA and HCA layers queries, window keys and the rotation back use rope_theta without "
        "YaRN; only compressed entries use compress_rope_theta. Its name suggests it. Found in "
        "nano-deepseek-v4 0.2.0."},
    [GATE_SUM_OF_ALL] = {"gate-sum-of-all", "gate_score", "gate.weight.1", WRONG_BOTH,
        "Weights are divided by the sum over all experts instead of the chosen ones."},
    [GATE_SUM_FLOOR] = {"gate-sum-floor", "gate_score", "gate.weight.1", WRONG_BOTH,
        "The sum of the chosen scores is not let below 1e-6 before the division, to be safe; where "
        "all logits are below -28 the weights then come out too small. Found in nano-deepseek-v4 "
        "0.2.0."},
    [EXPERT_SWIGLU_OAI] = {"expert-swiglu-oai", "expert", "expert.act.1", WRONG_BOTH,
        "g sigmoid(1.702 g) (v + 1): the clamped SwiGLU of another open model, which has the same "
        "limits."},
    [LIMIT_ON_PRODUCT] = {"limit-on-product", "expert", "expert.clamp.1", WRONG_BOTH,
        "The limit clamps silu(g) v instead of g and v."},
    [HEAD_NORM_LEFT_OUT] = {"final-norm-missing", "head", "head.norm.1", WRONG_BOTH,
        "The final norm is left out: the collapse is taken for one."},
    [HEAD_SCALE_MISSING] = {"head-scale-missing", "head", "head.mix.2", WRONG_BOTH,
        "hc_head_scale is left out of the head's mix."},
    [MTP_HEAD_COLLAPSED] = {"mtp-head-collapsed", "mtp", "mtp.stream.1", WRONG_BOTH,
        "MTP gets what the head matrix gets, the collapsed and normalised vector of the main "
        "model, in place of every stream: as MTP was in the generation before. Found in "
        "nano-deepseek-v4 0.2.0."},
    [MTP_HASH_GATE] = {"mtp-hash-gate", "mtp", "mtp.block.1", WRONG_BOTH,
        "The MTP block is built like layer 0, whose experts go by token id; MTP has no such table, "
        "and a made-up one is used. Found in nano-deepseek-v4 0.2.0."},
    [MUON_SCALE_ASPECT] = {"muon-scale-aspect", "muon", "muon.update.1", WRONG_BOTH,
        "The step is scaled by sqrt(max(1, rows / cols)), as in the first Muon, instead of 0.18 "
        "sqrt(max(rows, cols))."},
    [MUON_NOT_NORMALISED] = {"muon-not-normalised", "muon", "muon.orthogonal.1", WRONG_BOTH,
        "The update is not divided by its norm first; the iteration then diverges or saturates."},
    [FP4_SCALE_PER_16_CLAMPED] = {"fp4-scale-per-16-clamped", "linear_fp4", "quant.fp4.1", WRONG_BOTH,
        "One scale is taken per 16 values, and the last of the row where they run out."},
    [E8M0_BIAS_128] = {"e8m0-bias-128", "quant_e8m0_decode", "quant.e8m0.1", WRONG_BOTH,
        "An E8M0 byte is read as 2^(e - 128): every scale is half of what it should be."},
    [COMPRESS_THETA_ON_SWA] = {"compress-theta-on-swa", "rope_frequencies", "rope.theta.1", WRONG_BOTH,
        "SWA layers are rotated with compress_rope_theta: one theta serves all layers."},
    [MHC_NORM_EACH_STREAM] = {"mhc-norm-each-stream", "mhc_mix", "mhc.mix.1", WRONG_BOTH,
        "Every stream is divided by its own root mean square before the projection, instead of all "
        "by that of all nD values: an RMSNorm over the last dimension."},
    [STATE_ZEROED] = {"compressor-state-zeroed", "compressor_csa", "state.compressor.1", WRONG_BOTH,
        "Items of a group's tokens from earlier calls are noughts that count, a = 0 and z = 0: the "
        "state is a fresh buffer in every call."},
    [OVERLAP_STATE_LOST] = {"overlap-state-lost", "compressor_csa", "state.compressor.1", WRONG_BOTH,
        "CSA: the unfinished group is kept between calls, but not the one before it, whose half the "
        "next entry also pools. Chunked runs differ from a full pass at their boundaries."},
    [APE_REVERSED] = {"ape-reversed", "compressor_csa", "compressor.items.2", WRONG_BOTH,
        "ape's rows are used from the last to the first: as a distance from the group's end."},
    [INDEX_MASK_MISSING] = {"index-mask-missing", "indexer_select", "indexer.select.1", WRONG_BOTH,
        "The top-k is taken over all entries, and those that the token may not see yet are attended "
        "to: no causal mask at all."},
    [INDEX_RECENT] = {"index-recent", "attention_csa", "attention.csa.1", WRONG_BOTH,
        "The newest index_topk entries are attended to, not the best: a second sliding window in "
        "place of the indexer."},
    [SINK_NUMERATOR_ONLY] = {"sink-numerator-only", "core_attn", "core_attn.sink.1", WRONG_BOTH,
        "exp(sink) joins the numerator and not the denominator."},
    [SINK_RAW] = {"sink-raw", "core_attn", "core_attn.sink.1", WRONG_BOTH,
        "The sink itself joins the denominator, not its exponential."},
    [VISIBLE_GROUP_EARLY] = {"visible-group-early", "attention_csa", "compressor.visible.1", WRONG_BOTH,
        "A token sees one group more than are complete."},
    [VISIBLE_GROUP_LATE] = {"visible-group-late", "attention_csa", "compressor.visible.1", WRONG_BOTH,
        "A token sees one group less than are complete: the newest is held back."},
    [VISIBLE_UNFINISHED] = {"visible-unfinished", "attention_csa", "compressor.visible.1", WRONG_BOTH,
        "A token sees the group that it is in before that is complete: in a full pass, where all "
        "entries are there, it looks into the future."},
    [WINDOW_FROM_CALL] = {"window-from-call", "attention_swa", "state.window.1", WRONG_BOTH,
        "The window begins at the call's first token: what earlier calls left is not attended to."},
    [LIMIT_G_ONLY] = {"limit-g-only", "expert", "expert.clamp.1", WRONG_BOTH,
        "Only g is clamped, v is not."},
    [LIMIT_V_ONLY] = {"limit-v-only", "expert", "expert.clamp.1", WRONG_BOTH,
        "Only v is clamped, g is not."},
    [HEAD_FACTOR_2] = {"head-factor-2", "head", "head.mix.2", WRONG_BOTH,
        "The head's weights get the factor 2 of mHC's post. The norm behind it takes it away again "
        "but for the two eps."},
};
