"""The three passes of a convolution: each by the algorithm that its plan names."""


def conv_output(ConvPlan plan not None, ndarray x not None, ndarray weight not None, ndarray bias, ndarray residual,
                ndarray out not None, int activation=0, double slope=0):
    """out = activation(conv(x, weight) + bias + residual); bias and residual may be None."""
    cdef size_t es = plan.es
    cdef const char *px = read(x, es, plan.x_size)
    cdef const char *pw = read(weight, es, plan.weight_size)
    cdef const char *pb = read(bias, es, plan.groups * plan.oc)
    cdef const char *pr = read(residual, es, plan.out_size)
    cdef char *py = written(out, es, plan.out_size)
    if plan.winograd_output.r and conv_winograd_output(plan, px, pw, pb, pr, py, activation, slope):
        return
    conv_gemm_output(plan, px, pw, pb, pr, py, activation, slope)


def conv_input_gradient(ConvPlan plan not None, ndarray grad_output not None, ndarray weight not None,
                        ndarray grad_input not None):
    """grad_input = d<grad_output, conv(x, weight)> / dx."""
    cdef size_t es = plan.es
    cdef const char *pg = read(grad_output, es, plan.out_size)
    cdef const char *pw = read(weight, es, plan.weight_size)
    cdef char *px = written(grad_input, es, plan.x_size)
    if plan.winograd_gradient.r and conv_winograd_input_gradient(plan, pg, pw, px):
        return
    conv_gemm_input_gradient(plan, pg, pw, px)


def conv_weight_gradient(ConvPlan plan not None, ndarray grad_output not None, ndarray x not None,
                         ndarray grad_weight not None, ndarray grad_bias):
    """grad_weight = d<grad_output, conv(x, weight)> / dweight; grad_bias (or None) = sum of grad_output."""
    cdef size_t es = plan.es
    cdef const char *pg = read(grad_output, es, plan.out_size)
    cdef const char *px = read(x, es, plan.x_size)
    cdef char *pw = written(grad_weight, es, plan.weight_size)
    cdef char *pb = written(grad_bias, es, plan.groups * plan.oc)
    if (plan.direct_weight_rows and conv_direct_weight_gradient(plan, pg, px, pw) == 0
            or plan.winograd_weight.r and conv_winograd_weight_gradient(plan, pg, px, pw)):
        if pb != NULL:
            run_channel_sums(plan.k, es, pg, plan.n, plan.groups * plan.oc, plan.out_size, pb)
        return
    conv_gemm_weight_gradient(plan, pg, px, pw, pb)
