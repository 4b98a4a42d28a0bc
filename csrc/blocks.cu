// Block formats on the device.
#include "range_kernels.h"

namespace {

// How the blocks of a tensor are shared out among threads, as far as its shape tells.
struct plan {
    int64_t elements, count, size;  // of the tensor; blocks; elements of a whole one
    bool columns;
    lpt_strips strips;
    int64_t piece;  // elements, or rows, that a thread or a team takes at a time
    bool shared() const { return piece < (columns ? strips.wide : size); }
};

// Elements of a large block, or of a tensor, that a thread block takes: enough for every device to
// be busy, and not many more pieces than that.
int64_t piece_of(int64_t elements) {
    int64_t piece = 8192;
    while (piece < 65536 && elements / piece > 4096)
        piece *= 2;
    return piece;
}

plan plan_of(const lpt_layout &l) {
    const int64_t enough = 1 << 15;  // threads that keep a device busy
    plan p = {1, 1, 1, false, {}, 0};
    for (int32_t d = 0; d < l.dims; ++d) {
        p.elements *= l.shape[d];
        p.count *= (l.shape[d] + l.block[d] - 1) / l.block[d];
        p.size *= l.block[d];
    }
    const int32_t axis = l.dims - 2;
    p.columns = axis >= 0 && l.block[axis + 1] == 1 && l.block[axis] > 1 &&
                (axis == 0 || (axis == 1 && l.block[0] == 1));
    if (p.columns) {
        p.piece = p.count < enough && l.block[axis] > 64 ? 64 : l.block[axis];
        p.strips = {axis ? l.shape[0] : 1, l.shape[axis], l.shape[axis + 1], l.block[axis],
                    p.piece};
    } else {
        const int64_t piece = piece_of(p.elements);
        p.piece = p.count < enough / LPT_THREADS && p.size > piece ? piece : p.size;
    }
    return p;
}

// A format's scales, as the kernels take them.
template <int MODE, class T>
lpt_shifted<T, MODE> scales_of(const lpt_blocks &b, const lpt_rule &rule, const lpt_cell<T> &cell,
                               const typename lpt_carrier<T>::bits *) {
    lpt_shifted<T, MODE> op = {
        b, rule, cell, 0, 0, lpt_leave_out<T>(b.saturate, false), lpt_bump<T>(b)};
    lpt_movable<T>(b.element, cell, &op.low, &op.high);
    return op;
}
template <int MODE, class T>
lpt_divided<T, MODE> scales_of(const lpt_scaled &b, const lpt_rule &rule, const lpt_cell<T> &cell,
                               const typename lpt_carrier<T>::bits *top) {
    const lpt_rule nearest = {LPT_NEAREST, 32, 0, 0, {0, 0}};
    const auto within = [](double end) { return end <= 1 << 30; };
    const bool near = cell.plain && cell.drop >= 1 && b.element.overflow == LPT_SATURATE &&
                      (MODE != LPT_NEAREST || cell.roomy) &&
                      cell.tiny >= lpt_bits((T)1 / (1 << 16)) && within(b.element.max) &&
                      within(-b.element.min);
    return {b,
            rule,
            cell,
            lpt_make_cell<float>(b.scale, nearest, 0),
            lpt_leave_out<T>(b.saturate, false),
            b.whole == 0 ? nullptr : top,
            near};
}

template <class T>
lpt_boxes boxes_of(const T *x, const T *y, const lpt_layout &l, const plan &p, int32_t held) {
    const int32_t pack = lpt_pack<T>::size, last = l.dims - 1;
    const int64_t row = l.block[last];
    lpt_boxes boxes = {l, {}, {}, p.count, p.piece, 1, 1, last, 0, 0, 1, 0, 0, 0};
    boxes.lead = (int32_t)((uintptr_t)x % 16 / sizeof(T));
    boxes.wide = (uintptr_t)x % 16 == (uintptr_t)y % 16;
    const bool dense = boxes.wide && !boxes.lead && l.shape[last] % pack == 0 && row % pack == 0;
    int64_t lines = p.size + pack - 1, stride = 1;  // the first piece is shorter than others
    for (int32_t d = last; d >= 0; --d) {
        boxes.bands[d] = (l.shape[d] + l.block[d] - 1) / l.block[d];
        boxes.steps[d] = l.block[d] * stride;
        if (d < last && boxes.inner == last && l.block[d] > 1 &&
            row <= LPT_THREADS * (dense ? pack : 1)) {
            boxes.inner = d;
            boxes.stride = stride;
            boxes.wide = dense;
            boxes.units = (int32_t)(dense ? row / pack : row);
            boxes.piece = p.piece < row ? 1 : p.piece / row;
            lines = p.size / row;
        }
        stride *= l.shape[d];
    }
    if (!p.shared())
        boxes.piece = lines;
    boxes.pieces = (lines + boxes.piece - 1) / boxes.piece;
    // Few lanes have less to do beside the elements, but should still read whole sectors of memory.
    const auto each = [&](int32_t log) { return boxes.wide || log >= 3 ? held : 2 * pack; };
    while (1 << boxes.log_lanes < LPT_THREADS &&
           (1 << boxes.log_lanes < boxes.units ||
            (int64_t)each(boxes.log_lanes) << boxes.log_lanes < p.size))
        ++boxes.log_lanes;
    boxes.abreast = (1 << boxes.log_lanes) / boxes.units;
    boxes.share = (1 << 16) / boxes.units + 1;
    return boxes;
}

template <class T, class Op>
int32_t launch_boxes(const T *x, T *y, const lpt_layout &l, const plan &p, int32_t phase,
                     typename lpt_carrier<T>::bits *largest, lpt_draw draw, void *stream,
                     const Op &op) {
    const lpt_boxes boxes = boxes_of(x, y, l, p, lpt_held<Op>);
    const int64_t threads = (boxes.count * boxes.pieces) << boxes.log_lanes;
    return lpt_launch(LPT_KERNEL(lpt_teams, T, Op),
                      lpt_blocks_for((threads + LPT_THREADS - 1) / LPT_THREADS), stream, x, y,
                      boxes, phase, largest, draw, op);
}

// One phase, or all of them, for blocks of any shape.
template <class T, class Op>
int32_t launch_phase(const T *x, T *y, const lpt_layout &l, const plan &p, int32_t phase,
                     typename lpt_carrier<T>::bits *largest, lpt_draw draw, void *stream,
                     const Op &op) {
    if (!p.columns)
        return launch_boxes(x, y, l, p, phase, largest, draw, stream, op);
    const int64_t pieces = (p.strips.wide + p.piece - 1) / p.piece;
    const int64_t chunks = (p.count * pieces + LPT_THREADS - 1) / LPT_THREADS;
    return lpt_launch(LPT_KERNEL(lpt_columns, T, Op), lpt_blocks_for(chunks), stream, x, y,
                      p.strips, phase, largest, draw, op);
}

template <class T, class Op>
int32_t launch_blocks(const T *x, T *y, const lpt_layout &l, const plan &p,
                      typename lpt_carrier<T>::bits *largest, lpt_draw draw, void *stream,
                      const Op &op) {
    if constexpr (Op::MODE != LPT_ANY) {
        const int64_t lanes = p.size / lpt_pack<T>::size;
        const int64_t chunk = 2 * LPT_THREADS * lpt_pack<T>::size;
        const bool aligned = (uintptr_t)x % 16 == 0 && (uintptr_t)y % 16 == 0;
        const bool dense = l.dims == 1 && p.elements % p.size == 0;
        if (dense && aligned && lanes * lpt_pack<T>::size == p.size && lanes >= 1 &&
            lanes <= LPT_WARP && (lanes & (lanes - 1)) == 0)
            return lpt_launch(LPT_KERNEL(lpt_packed, T, Op),
                              lpt_blocks_for((p.elements + chunk - 1) / chunk), stream, x, y,
                              p.elements, (int32_t)lanes, draw, op);
    }
    for (int32_t phase = p.shared() ? LPT_MAXIMA : LPT_ALL;; phase = LPT_ROUND) {
        const int32_t error = launch_phase(x, y, l, p, phase, largest, draw, stream, op);
        if (error || phase != LPT_MAXIMA)
            return error;
    }
}

// The largest finite magnitude of all elements, into `top`, which holds zero.
template <class T>
int32_t find_top(const T *x, const plan &p, typename lpt_carrier<T>::bits *top,
                 const lpt_rule &rule, const lpt_scaled &b, void *stream) {
    lpt_blocks none = {b.element, 2, 0, 0, 0, 0};
    constexpr int MODE = sizeof(T) == 4 ? LPT_NEAREST : LPT_ANY;  // nothing is rounded
    lpt_shifted<T, MODE> op =
        scales_of<MODE, T>(none, rule, lpt_make_cell<T>(b.element, rule, 0), nullptr);
    op.counted = lpt_leave_out<T>(true, true);
    const plan flat = {p.elements, 1, p.elements, false, {}, piece_of(p.elements)};
    return launch_boxes(x, (T *)x, {1, {p.elements}, {p.elements}}, flat, LPT_MAXIMA, top,
                        lpt_make_draw(rule, nullptr), stream, op);
}
template <class T>
int32_t find_top(const T *, const plan &, typename lpt_carrier<T>::bits *, const lpt_rule &,
                 const lpt_blocks &, void *) {
    return 0;
}

double tensor_scale(const lpt_blocks &) { return 0; }
double tensor_scale(const lpt_scaled &b) { return b.whole; }

// `scratch` has room for what lpt_cuda_scratch says.
template <class T, class Format>
int32_t round_blocks(const T *x, T *y, const lpt_layout &l, const Format &b, const lpt_rule &rule,
                     const lpt_key *drawn, typename lpt_carrier<T>::bits *scratch, int32_t device,
                     void *stream) {
    const plan p = plan_of(l);
    const lpt_cell<T> cell = lpt_make_cell<T>(b.element, rule, 0);
    const lpt_draw draw = lpt_make_draw(rule, drawn);
    int32_t error = lpt_on_device(device);
    if (!error && (p.shared() || tensor_scale(b) != 0))
        error = lpt_clear(scratch, (1 + (p.shared() ? p.count : 0)) * sizeof *scratch, stream);
    if (!error && tensor_scale(b) != 0)
        error = find_top(x, p, scratch, rule, b, stream);
    if (error)
        return error;
    if constexpr (sizeof(T) == 4) {
        if (cell.plain && rule.mode == LPT_NEAREST)
            return launch_blocks(x, y, l, p, scratch + 1, draw, stream,
                                 scales_of<LPT_NEAREST, T>(b, rule, cell, scratch));
        if (cell.plain && rule.mode == LPT_STOCHASTIC)
            return launch_blocks(x, y, l, p, scratch + 1, draw, stream,
                                 scales_of<LPT_STOCHASTIC, T>(b, rule, cell, scratch));
    }
    return launch_blocks(x, y, l, p, scratch + 1, draw, stream,
                         scales_of<LPT_ANY, T>(b, rule, cell, scratch));
}

// `scratch` has room for what lpt_cuda_range_scratch says: one end of each block, the other one,
// and what the block has.
template <class T>
int32_t round_ranges(const T *x, T *y, const lpt_layout &l, const lpt_ranges &b,
                     const lpt_rule &rule, const lpt_key *drawn,
                     typename lpt_carrier<T>::bits *scratch, int32_t device, void *stream) {
    typedef typename lpt_carrier<T>::bits U;
    const plan p = plan_of(l);
    const lpt_cell<T> cell = lpt_make_cell<T>(b.steps, rule, 0);
    const lpt_draw draw = lpt_make_draw(rule, drawn);
    const bool multiply = b.reciprocal != 0;
    U *const most = scratch, *const least = most + p.count;
    lpt_block_spread<T> *const spread = (lpt_block_spread<T> *)(least + p.count);
    int32_t error = lpt_on_device(device);
    if (!error)
        error = lpt_clear(scratch, 2 * p.count * sizeof *scratch, stream);
    for (U *const end : {most, least})
        if (!error)
            error = launch_phase(x, y, l, p, LPT_MAXIMA, end, draw, stream,
                                 lpt_end_of<T>{rule, {end == most ? (U)0 : ~(U)0}});
    if (!error)
        error = lpt_launch(LPT_KERNEL(lpt_spread_blocks, T),
                           lpt_blocks_for((p.count + LPT_THREADS - 1) / LPT_THREADS), stream,
                           p.count, least, most, spread, b);
    if (error)
        return error;
    if constexpr (sizeof(T) == 4) {
        if (cell.plain && rule.mode == LPT_NEAREST)
            return launch_phase(x, y, l, p, LPT_ROUND, most, draw, stream,
                                lpt_spreading<T, LPT_NEAREST>{rule, cell, spread, multiply, {}});
        if (cell.plain && rule.mode == LPT_STOCHASTIC)
            return launch_phase(x, y, l, p, LPT_ROUND, most, draw, stream,
                                lpt_spreading<T, LPT_STOCHASTIC>{rule, cell, spread, multiply, {}});
    }
    return launch_phase(x, y, l, p, LPT_ROUND, most, draw, stream,
                        lpt_spreading<T, LPT_ANY>{rule, cell, spread, multiply, {}});
}

}  // namespace

// Numbers of the carrier's size that the kernels need beside the tensor; the caller allocates them.
LPT_API int64_t lpt_cuda_scratch(const lpt_layout *l) {
    const plan p = plan_of(*l);
    return 1 + (p.shared() ? p.count : 0);
}

LPT_API int64_t lpt_cuda_range_scratch(const lpt_layout *l) {
    return plan_of(*l).count * (2 + sizeof(lpt_block_spread<float>) / sizeof(float));
}

LPT_API int32_t lpt_cuda_round_blocks_f32(const float *x, float *y, const lpt_layout *l,
                                          const lpt_blocks *b, const lpt_rule *rule,
                                          const lpt_key *drawn, uint32_t *scratch, int32_t device,
                                          void *stream) {
    return round_blocks(x, y, *l, *b, *rule, drawn, scratch, device, stream);
}
LPT_API int32_t lpt_cuda_round_blocks_f64(const double *x, double *y, const lpt_layout *l,
                                          const lpt_blocks *b, const lpt_rule *rule,
                                          const lpt_key *drawn, uint64_t *scratch, int32_t device,
                                          void *stream) {
    return round_blocks(x, y, *l, *b, *rule, drawn, scratch, device, stream);
}
LPT_API int32_t lpt_cuda_round_scaled_f32(const float *x, float *y, const lpt_layout *l,
                                          const lpt_scaled *b, const lpt_rule *rule,
                                          const lpt_key *drawn, uint32_t *scratch, int32_t device,
                                          void *stream) {
    return round_blocks(x, y, *l, *b, *rule, drawn, scratch, device, stream);
}
LPT_API int32_t lpt_cuda_round_scaled_f64(const double *x, double *y, const lpt_layout *l,
                                          const lpt_scaled *b, const lpt_rule *rule,
                                          const lpt_key *drawn, uint64_t *scratch, int32_t device,
                                          void *stream) {
    return round_blocks(x, y, *l, *b, *rule, drawn, scratch, device, stream);
}
LPT_API int32_t lpt_cuda_round_ranges_f32(const float *x, float *y, const lpt_layout *l,
                                          const lpt_ranges *b, const lpt_rule *rule,
                                          const lpt_key *drawn, uint32_t *scratch, int32_t device,
                                          void *stream) {
    return round_ranges(x, y, *l, *b, *rule, drawn, scratch, device, stream);
}
LPT_API int32_t lpt_cuda_round_ranges_f64(const double *x, double *y, const lpt_layout *l,
                                          const lpt_ranges *b, const lpt_rule *rule,
                                          const lpt_key *drawn, uint64_t *scratch, int32_t device,
                                          void *stream) {
    return round_ranges(x, y, *l, *b, *rule, drawn, scratch, device, stream);
}
