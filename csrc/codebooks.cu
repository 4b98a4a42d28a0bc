// Codebooks and posits on the device.
#include "device_formats.h"
#include "elements.h"

namespace {

template <int MODE> struct launch_table {
    template <class T>
    static int32_t run(const T *x, T *y, int64_t n, lpt_table<T> t, lpt_odds odds, lpt_draw draw,
                       void *stream) {
        // The mode is in the steps of the table, save where a word decides.
        enum { KIND = MODE < LPT_STOCHASTIC ? (int)LPT_NEAREST : MODE };
        return lpt_launch_map<KIND, false>(lpt_one<T>{x, y, n}, draw, stream,
                                           lpt_to_table<T, KIND>{t, odds});
    }
};

template <int MODE> struct launch_posit {
    template <class T>
    static int32_t run(const T *x, T *y, int64_t n, lpt_posit p, lpt_odds odds, lpt_draw draw,
                       void *stream) {
        return lpt_launch_map<MODE, false>(lpt_one<T>{x, y, n}, draw, stream,
                                           lpt_to_posit<T, MODE>{p, odds});
    }
};

template <template <int> class Launch, class T, class Format>
int32_t round_format(const T *x, T *y, int64_t n, const Format &format, const lpt_rule &rule,
                     const lpt_key *drawn, int32_t device, void *stream) {
    const int32_t error = lpt_on_device(device);
    return error ? error : lpt_with_mode(rule.mode, [&](auto mode) {
        return Launch<decltype(mode)::value>::run(x, y, n, format, lpt_make_odds(rule.bits),
                                                  lpt_make_draw(rule, drawn), stream);
    });
}

}  // namespace

// The table's own arrays lie on the device.
LPT_API int32_t lpt_cuda_round_table_f32(const float *x, float *y, int64_t n,
                                         const lpt_table<float> *t, const lpt_rule *rule,
                                         const lpt_key *drawn, int32_t device, void *stream) {
    return round_format<launch_table>(x, y, n, *t, *rule, drawn, device, stream);
}
LPT_API int32_t lpt_cuda_round_table_f64(const double *x, double *y, int64_t n,
                                         const lpt_table<double> *t, const lpt_rule *rule,
                                         const lpt_key *drawn, int32_t device, void *stream) {
    return round_format<launch_table>(x, y, n, *t, *rule, drawn, device, stream);
}

LPT_API int32_t lpt_cuda_round_posit_f32(const float *x, float *y, int64_t n, const lpt_posit *p,
                                         const lpt_rule *rule, const lpt_key *drawn, int32_t device,
                                         void *stream) {
    return round_format<launch_posit>(x, y, n, *p, *rule, drawn, device, stream);
}
LPT_API int32_t lpt_cuda_round_posit_f64(const double *x, double *y, int64_t n, const lpt_posit *p,
                                         const lpt_rule *rule, const lpt_key *drawn, int32_t device,
                                         void *stream) {
    return round_format<launch_posit>(x, y, n, *p, *rule, drawn, device, stream);
}
