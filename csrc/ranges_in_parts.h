// How tensors whose blocks are spread from their smallest to their largest value are shared out
// among threads. Part of library.cpp.
#pragma once
#include "blocks_in_parts.h"

namespace {

// What `count` blocks need while they are rounded, and `parts` threads that have a part of each.
template <class T> class spread_room {
    typedef typename lpt_carrier<T>::sbits S;
    const int64_t count;
    T *const fields;
    S *const ends;

  public:
    spread_room(int64_t blocks, int64_t parts)
        : count(blocks), fields((T *)malloc(5 * blocks * sizeof(T))),
          ends((S *)malloc(2 * blocks * parts * sizeof(S))) {}
    ~spread_room() {
        free(fields);
        free(ends);
    }
    spread_room(const spread_room &) = delete;
    bool there() const { return fields && ends; }
    S *least(int64_t part) const { return ends + 2 * part * count; }
    S *most(int64_t part) const { return least(part) + count; }
    lpt_spread<T> blocks() const {
        return {fields, fields + count, fields + 2 * count, fields + 3 * count, fields + 4 * count};
    }
    // Before any element was looked at.
    void clear(int64_t part, int64_t blocks) const {
        const S none = (S)((typename lpt_carrier<T>::bits)1 << (lpt_carrier<T>::width - 1));
        for (int64_t k = 0; k < blocks; ++k)
            least(part)[k] = most(part)[k] = none;
    }
    void join(int64_t part) const {
        for (int64_t k = 0; k < 2 * count; ++k)  // of both
            ends[k] = least(part)[k] > ends[k] ? least(part)[k] : ends[k];
    }
};

// What blocks have whose elements are `size` from `from` on, the first of them `before`; whether
// one needs the long way.
template <class T>
bool find_spread(const T *x, const lpt_layout &l, const lpt_ranges &ranges,
                 const spread_room<T> &room, int64_t from, int64_t size, int64_t before,
                 int64_t count, int64_t parts) {
    const lpt_loops<T> &f = loops(T());
    in_parts(parts, [&](int64_t part) {
        room.clear(part, count);
        f.extremes(x, l, from + size * part / parts, from + size * (part + 1) / parts, before,
                   room.least(part), room.most(part));
    });
    for (int64_t part = 1; part < parts; ++part)
        room.join(part);
    return f.spread_out(ranges, count, room.least(0), room.most(0), room.blocks());
}

// The scale of each block, and then its zero point. 0, or 1 where there was no memory.
template <class T>
int find_ranges(const T *x, double *to, const lpt_layout &l, const lpt_ranges &ranges,
                int threads) {
    const lpt_units units(l);
    const int64_t count = units.number * units.blocks, useful = units.elements / GRAIN + 1;
    const int parts = threads < useful ? threads : (int)useful;
    const spread_room<T> room(count, parts);
    if (!room.there())
        return 1;
    const plain_arithmetic guard;
    find_spread(x, l, ranges, room, 0, units.elements, 0, count, parts);
    const lpt_spread<T> blocks = room.blocks();
    for (int64_t k = 0; k < count; ++k) {
        to[k] = blocks.scale[k];
        to[count + k] = to[k] == to[k] ? ranges.min - blocks.low[k] : to[k];
    }
    return 0;
}

// Leading axes whose blocks are one wide, and the blocks along the next axis, cut the tensor into
// units that know nothing of each other. Threads share out the units, a few small ones at a time,
// or each of a few large ones.
template <class T>
int round_ranges(const T *x, T *y, const lpt_layout &l, const lpt_ranges &ranges,
                 const lpt_rule &rule, int threads) {
    const lpt_loops<T> &f = loops(T());
    const lpt_units units(l);
    const int64_t useful = units.elements / GRAIN + 1, at_once = 1024;
    const int parts = threads < useful ? threads : (int)useful;
    const bool shared = units.number >= 2 * parts;  // else every unit is split
    const int teams = shared ? parts : 1, members = shared ? 1 : parts;
    std::atomic<bool> failed(false);
    in_parts(teams, [&](int64_t team) {
        const int64_t small = at_once / units.size(0), last = units.number * (team + 1) / teams;
        const int64_t several = shared && small > 1 ? small : 1;
        const spread_room<T> room(several * units.blocks, members);
        if (!room.there()) {
            failed = true;
            return;
        }
        for (int64_t u = units.number * team / teams; u < last; u += several) {
            const int64_t next = u + several < last ? u + several : last;
            const int64_t from = units.start(u), size = units.start(next) - from;
            const int64_t before = u * units.blocks, count = (next - u) * units.blocks;
            const auto start = [=](int64_t part) { return from + size * part / members; };
            const bool far = find_spread(x, l, ranges, room, from, size, before, count, members);
            in_parts(members, [&](int64_t part) {
                f.spread(x, y, l, start(part), start(part + 1), before, room.blocks(), far, ranges,
                         rule);
            });
        }
    });
    return failed;
}

}  // namespace
