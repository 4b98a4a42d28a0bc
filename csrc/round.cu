// Scalar formats on the device, and what the library says of itself.
#include "device_formats.h"
#include "elements.h"

namespace {

template <int MODE> struct launch {
    // Code without the arms for rare formats is compiled only where people are waiting for it.
    enum { COMMON = MODE == LPT_NEAREST || MODE == LPT_TOWARD_ZERO || MODE == LPT_STOCHASTIC };

    template <template <class> class Work, class T>
    static int32_t run(Work<T> work, lpt_cell<T> c, lpt_draw draw, void *stream) {
        if constexpr (COMMON && sizeof(T) == 4) {
            if constexpr (MODE == LPT_NEAREST) {
                if (c.roomy)
                    return lpt_launch_map<MODE, true>(work, draw, stream,
                                                      lpt_to_grid<T, MODE, LPT_ROOMY>{c});
            }
            if (c.plain)
                return lpt_launch_map<MODE, true>(work, draw, stream,
                                                  lpt_to_grid<T, MODE, LPT_PLAIN>{c});
        }
        return lpt_launch_map<MODE, false>(work, draw, stream, lpt_to_grid<T, MODE, LPT_RARE>{c});
    }
};

template <template <class> class Work, class T>
int32_t round_grid(Work<T> work, const lpt_grid *g, const lpt_rule *rule, const lpt_key *drawn,
                   int32_t device, void *stream) {
    const int32_t error = lpt_on_device(device);
    return error ? error : lpt_with_mode(rule->mode, [&](auto mode) {
        return launch<decltype(mode)::value>::run(work, lpt_make_cell<T>(*g, *rule, 0),
                                                  lpt_make_draw(*rule, drawn), stream);
    });
}

}  // namespace

LPT_API int32_t lpt_cuda_round_f32(const float *x, float *y, int64_t n, const lpt_grid *g,
                                   const lpt_rule *rule, const lpt_key *drawn, int32_t device,
                                   void *stream) {
    return round_grid(lpt_one<float>{x, y, n}, g, rule, drawn, device, stream);
}
LPT_API int32_t lpt_cuda_round_f64(const double *x, double *y, int64_t n, const lpt_grid *g,
                                   const lpt_rule *rule, const lpt_key *drawn, int32_t device,
                                   void *stream) {
    return round_grid(lpt_one<double>{x, y, n}, g, rule, drawn, device, stream);
}

// Tensors where they lie, by a launch for each LPT_MANY of them. In a stochastic mode each has a
// key of its own: `keys` on the host, or `drawn` on the device.
LPT_API int32_t lpt_cuda_round_many_f32(float *const *at, const int64_t *n, int64_t count,
                                        const lpt_grid *g, const lpt_rule *rule,
                                        const lpt_key *keys, const lpt_key *drawn, int32_t device,
                                        void *stream) {
    return round_grid(lpt_some<float>{at, n, count, keys, drawn}, g, rule, nullptr, device, stream);
}

LPT_API int32_t lpt_cuda_abi_version() { return 7; }

LPT_API const char *lpt_cuda_error(int32_t code) { return lpt_error_text(code); }
