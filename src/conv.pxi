"""The three passes of a convolution: each by the algorithm that its plan names."""


cdef int output(ConvPlan plan, const real[:, :, :, ::1] x, const real[:, :, :, ::1] weight, const real[::1] bias,
                const real[:, :, :, ::1] residual, real[:, :, :, ::1] out, int activation, double slope) except -1:
    if plan.winograd_output.r and conv_winograd_output[real](plan, x, weight, bias, residual, out, activation, slope):
        return 0
    return conv_gemm_output[real](plan, x, weight, bias, residual, out, activation, slope)


cdef int input_gradient(ConvPlan plan, const real[:, :, :, ::1] grad_output, const real[:, :, :, ::1] weight,
                        real[:, :, :, ::1] grad_input) except -1:
    if plan.winograd_gradient.r and conv_winograd_input_gradient[real](plan, grad_output, weight, grad_input):
        return 0
    return conv_gemm_input_gradient[real](plan, grad_output, weight, grad_input)


cdef int weight_gradient(ConvPlan plan, const real[:, :, :, ::1] grad_output, const real[:, :, :, ::1] x,
                         real[:, :, :, ::1] grad_weight, real[::1] grad_bias) except -1:
    if (plan.direct_weight_rows and conv_direct_weight_gradient[real](plan, grad_output, x, grad_weight) == 0
            or plan.winograd_weight.r and conv_winograd_weight_gradient[real](plan, grad_output, x, grad_weight)):
        if grad_bias is not None:
            run_channel_sums[real](grad_output, grad_bias)
        return 0
    return conv_gemm_weight_gradient[real](plan, grad_output, x, grad_weight, grad_bias)


def conv_output(ConvPlan plan not None, x, weight, bias, residual, out, int activation=0, double slope=0):
    """out = activation(conv(x, weight) + bias + residual)."""
    if plan.es == 4:
        output[float](plan, x, weight, bias, residual, out, activation, slope)
    else:
        output[double](plan, x, weight, bias, residual, out, activation, slope)


def conv_input_gradient(ConvPlan plan not None, grad_output, weight, grad_input):
    """grad_input = d<grad_output, conv(x, weight)> / dx."""
    if plan.es == 4:
        input_gradient[float](plan, grad_output, weight, grad_input)
    else:
        input_gradient[double](plan, grad_output, weight, grad_input)


def conv_weight_gradient(ConvPlan plan not None, grad_output, x, grad_weight, grad_bias):
    """grad_weight = d<grad_output, conv(x, weight)> / dweight; grad_bias (or None) = sum of grad_output."""
    if plan.es == 4:
        weight_gradient[float](plan, grad_output, x, grad_weight, grad_bias)
    else:
        weight_gradient[double](plan, grad_output, x, grad_weight, grad_bias)
