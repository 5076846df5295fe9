"""Bugs to plant in the CUDA kernels, as edits of their text: every one of them must be caught.

An edit replaces the one place of a file of csrc that reads ``old``, however its lines are broken.
``check`` names the check of probe.py that has to complain; with ``sanitize`` it runs under the
address and undefined-behaviour sanitizers, for bugs that need not change a result.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Bug(NamedTuple):
    """One planted bug."""

    name: str
    file: str
    old: str
    new: str
    check: str
    sanitize: bool = False

    def plant(self, texts: dict[str, str]) -> None:
        """Edit ``texts``; the sources must still have the place, once."""
        pattern = r"\s+".join(map(re.escape, self.old.split()))
        texts[self.file], found = re.subn(pattern, lambda _: self.new, texts[self.file])
        assert found == 1, f"{self.name}: {self.file} has {found} places {self.old!r}"


FORWARD, TILE = "cuda/depthwise_fwd.cu", "cuda/depthwise.cuh"
TENSOR, OPERANDS = "cuda/depthwise_tensor.cu", "cuda/depthwise_tensor.cuh"
BACKWARD = "cuda/depthwise_bwd.cu"
SE, NORM = "cuda/squeeze_excite.cu", "cuda/batch_norm.cu"
MLP, GATE, GATE_BWD = "cuda/se_mlp.cuh", "cuda/se_gate.cu", "cuda/se_gate_bwd.cu"
SWEEP, REDUCE = "cuda/sweep.cuh", "cuda/reduce.cu"

ROW_DONE = "// The row before this one"
ROW_BARRIER = "__syncthreads(); " + ROW_DONE

DEPTHWISE = [
    Bug("no barrier between a row's arrival and its use", FORWARD, ROW_BARRIER, ROW_DONE,
        "depthwise"),
    Bug("divergent barrier", FORWARD, ROW_BARRIER,
        "if (works) __syncthreads();\nelse __syncthreads();\n" + ROW_DONE, "depthwise"),
    Bug("barrier skipped by idle threads", FORWARD, ROW_BARRIER,
        "if (works) __syncthreads();\n" + ROW_DONE, "depthwise"),
    Bug("return before a barrier", FORWARD, "const int window = ((works",
        "if (!works) return;\nconst int window = ((works", "depthwise"),
    Bug("no barrier before the ring is used again", FORWARD,
        "__syncthreads();  // the ring's last rows", "// the ring's last rows", "depthwise"),
    Bug("no wait for the copies", FORWARD, "wait_async<U::kRing - 2>();", "", "depthwise"),
    Bug("a wait for one group too few", FORWARD, "wait_async<U::kRing - 2>();",
        "wait_async<U::kRing - 1>();", "depthwise"),
    Bug("copies into the row that is being read", FORWARD, "(phase + U::kRing - 1) % U::kRing",
        "phase", "depthwise"),
    Bug("halo off by one", FORWARD, "q0 * S - shape.pad_left,", "q0 * S - shape.pad_left + 1,",
        "depthwise"),
    Bug("dropped tap", FORWARD, "if (tap < 0 || tap >= K) continue;",
        "if (tap < 0 || tap >= K - 1) continue;", "depthwise"),
    Bug("wrong parity of the rows at stride 2", FORWARD, "for (int i = phase % S; i < K; i += S) {",
        "for (int i = (phase + 1) % S; i < K; i += S) {", "depthwise"),
    Bug("strip of the pool one row late", FORWARD, "min((kPoolRows - 1) * S + K - 1, steps - 1)",
        "min(kPoolRows * S + K - 1, steps - 1)", "depthwise"),
    Bug("columns past the edge in the statistics", FORWARD,
        "if (j < columns) moments.add(done[j]);", "moments.add(done[j]);", "depthwise"),
    Bug("columns past the edge stored", FORWARD, "if (j < columns) finish_column(j);",
        "finish_column(j);", "depthwise"),
    Bug("padding not zeroed", TILE, "if (!exists || inside[s]) continue;", "continue;",
        "depthwise"),
    Bug("one column past the right edge", TILE, "column >= 0 && column < w &&",
        "column >= 0 && column <= w &&", "depthwise"),
    Bug("unaligned vector", "cuda/numeric.cuh", "map.w_stride % vector) == 0;",
        "map.w_stride % vector) >= 0;", "depthwise"),
    Bug("32-bit offset of an image in the ring", TILE, "(image0 + first) * x.n_stride +",
        "int((image0 + first) * x.n_stride) +", "far_apart"),
    Bug("too little shared memory", "cuda/launch.h", "shared_bytes, stream, std::forward",
        "shared_bytes - 64, stream, std::forward", "depthwise", True),
    Bug("statistics merged without their counts", "cuda/reduce.cuh",
        "count += own, sum += own * d;", "count += own, sum += own * d + d;", "depthwise"),
]  # fmt: skip

DEPTHWISE_TENSOR = [
    Bug("tensor: no barrier between a row's arrival and its use", TENSOR, ROW_BARRIER, ROW_DONE,
        "depthwise"),
    Bug("tensor: a row of the ring filled while it is read", TENSOR,
        "if (step < copied - (U::kRing - 1)) { loader.start(ring + free_slot,",
        "if (step < copied - (U::kRing - 1)) { loader.start(ring + slot,", "depthwise"),
    Bug("tensor: no wait for the copies", OPERANDS, "wait_async<kPending>();", "", "depthwise"),
    Bug("tensor: a wait for one group too few", OPERANDS, "wait_async<kPending>();",
        "wait_async<kPending + 1>();", "depthwise"),
    Bug("tensor: a ring of a row too many", TENSOR, "at == (U::kRing - 1) * row_bytes ? 0",
        "at == U::kRing * row_bytes ? 0", "depthwise"),
    Bug("tensor: split rows that are not double", TENSOR, "split_rows + step % 2 * 2 * row_bytes",
        "split_rows", "depthwise"),
    Bug("tensor: no low half", OPERANDS, "rest[2 * i] = v[2 * i] - rounded[0]",
        "rest[2 * i] = 0.0f * rounded[0]", "halves"),
    Bug("tensor: taps off the diagonal", TENSOR, "const bool diagonal = g / 2 == t &&",
        "const bool diagonal = (g + 1) / 2 == t &&", "depthwise"),
    Bug("tensor: wrong parity of the columns at stride 2", OPERANDS,
        "layout.place(column % S * layout.plane",
        "layout.place((S - 1 - column % S) * layout.plane", "strides"),
    Bug("tensor: 32-bit offset of an image", OPERANDS, "start = image0 * x.n_stride +",
        "start = int(image0 * x.n_stride) +", "far_apart"),
    Bug("tensor: padding not zeroed", OPERANDS, "r < rows && exists && !inside;",
        "r < 0 * rows && exists && !inside;", "depthwise"),
    Bug("tensor: lanes exchange the wrong halves", TENSOR, "odd ? low : high, 1)",
        "odd ? high : low, 1)", "depthwise"),
    Bug("tensor: columns past the edge in the pool", TENSOR, "if (pools && exists(o)) {",
        "if (pools) {", "depthwise"),
    Bug("tensor: columns past the edge in the statistics", TENSOR, "if (exists(o)) { moments.add(",
        "{ moments.add(", "depthwise"),
    Bug("tensor: an infinity spreads to other channels", TENSOR,
        "if (any_nan(any)) {", "if (any_nan(0.0f)) {", "infinities"),
    Bug("tensor: an exact sum only where the first channel shows it", TENSOR,
        "if (any_nan(any)) {", "if (any_nan(any) && any != any) {", "infinities"),
    Bug("tensor: a product's other half", "cuda/tensor_core.cuh",
        "const uint32_t a[4] = {a0, a1, 0, 0};", "const uint32_t a[4] = {a1, a0, 0, 0};",
        "depthwise"),
]  # fmt: skip

DEPTHWISE_BOXES = [
    Bug("boxes: no wait", TENSOR, "loader.wait_for_row(ring + slot, layout, parity);", "",
        "inference"),
    Bug("boxes: a wait for the phase before", TENSOR, "int slot = 0, parity = 0;",
        "int slot = 0, parity = 1;", "inference"),
    Bug("boxes: a phase that never ends", TENSOR, "if (slot < free_slot) parity ^= 1;", "",
        "inference"),
    Bug("boxes: fewer bytes than come", OPERANDS, "S * layout.pixels * kBoxBytes);",
        "S * layout.pixels * kBoxBytes - kBoxBytes);", "inference"),
    Bug("boxes: not armed", OPERANDS, "expect_boxes(barrier, S *", "(void)(S *", "inference"),
    Bug("boxes: asked for by every thread", OPERANDS, "if (threadIdx.x != 0) return;", "",
        "inference"),
    Bug("boxes: one column to the right", OPERANDS, "first >> (S - 1), row,",
        "(first + S) >> (S - 1), row,", "inference"),
    Bug("boxes: odd columns for even ones", OPERANDS, "maps.of[first & (S - 1)]",
        "maps.of[plane]", "inference"),
    Bug("boxes: no barrier before a row is asked for", TENSOR, ROW_BARRIER, ROW_DONE, "inference"),
    Bug("boxes: vectors where they were not turned to", "cuda/box_copy.cuh",
        "offset ^ (offset >> 3 & 0x30)", "offset", "inference"),
    Bug("boxes: planes that do not begin at a multiple of 128 bytes", OPERANDS,
        "ceil_div(pixels, kPixels) * kPixels", "pixels", "strides"),
    Bug("boxes: no room for the barrier behind the last pixel", OPERANDS,
        "whole * kBoxBytes + kBarrierBytes, kBoxAlignment)", "whole * kBoxBytes, kBoxAlignment)",
        "strides"),
    Bug("boxes: an image that is all images", "cuda/box_copy.cuh", "stride < span ||", "",
        "strides"),
    Bug("boxes: a column beyond the last at stride 2", TENSOR, "ceil_div(s.w - plane, S)",
        "ceil_div(s.w, S)", "strides"),
]  # fmt: skip

DEPTHWISE_BWD = [
    Bug("backward: no barrier before a row of dy is used", BACKWARD,
        "__syncthreads();\n                // The stage and the ring row",
        "// The stage and the ring row", "depthwise_bwd"),
    Bug("backward: no wait for the copies", BACKWARD, "wait_async<kStages - 2>();", "",
        "depthwise_bwd"),
    Bug("backward: wrong parity at stride 2", BACKWARD, "const int i = e + S * m;",
        "const int i = (S - 1 - e) + S * m;", "depthwise_bwd"),
    Bug("backward: dropped tap", BACKWARD, "behind >= kWindow || tap >= K) continue;",
        "behind >= kWindow || tap >= K - 1) continue;", "depthwise_bwd"),
    Bug("backward: columns outside in the weight gradient", BACKWARD,
        "if (unsigned(w0 + i / kLanes) < unsigned(own_w)) continue;", "continue;",
        "depthwise_bwd"),
    Bug("backward: a ring that is one row short", BACKWARD, "newest - m : newest - m + kRing",
        "newest - m : newest - m + kRing - 1", "depthwise_bwd"),
    Bug("backward: only one image's sums", BACKWARD, "g < tile.groups * tile.images; g++) sum +=",
        "g < tile.groups; g++) sum +=", "depthwise_bwd"),
    Bug("backward: rows above a strip counted twice", BACKWARD, "if (u < first_u) continue;", "",
        "depthwise_bwd"),
    Bug("backward: no barrier before the rings become sums", BACKWARD,
        "reinterpret_cast<float*>(wide);\n    __syncthreads();", "reinterpret_cast<float*>(wide);",
        "depthwise_bwd"),
    Bug("backward: no barrier between the tiles of a row", BACKWARD,
        "__syncthreads();  // the rows of the tile before", "// the rows of the tile before",
        "depthwise_bwd"),
    Bug("images that lie far apart share a block", TILE, "(kReach - 1) / (4 * stride)",
        "kReach + 0 * stride", "far_apart"),
]  # fmt: skip

PRODUCT, FRAGMENTS = "cuda/pointwise.cuh", "cuda/mma.cuh"
PROJECT, OUTER = "cuda/project_bwd.cuh", "cuda/outer.cuh"

POINTWISE = [
    Bug("half of a chunk's channels", PRODUCT,
        "multiply_add<T>(c, low[2], high[2], low[3], high[3], b.z, b.w);", "", "pointwise"),
    Bug("outputs in another order than their columns", FRAGMENTS, "8 * (n / 2) + 2 * j + n % 2",
        "8 * (n / 2) + 2 * (3 - j) + n % 2", "pointwise"),
    Bug("no barrier before the weights are read", PRODUCT,
        "__syncthreads();\n\n    const Lane lane;", "const Lane lane;", "pointwise"),
    Bug("moments over weights still in use", PRODUCT,
        "__syncthreads();  // the weights have been read", "", "pointwise"),
    Bug("rows past the end in the moments", PRODUCT, "clamp_rows(rows.count, 2 * kSteps)",
        "2 * kSteps", "pointwise"),
    Bug("rows past the end stored", PRODUCT, "if (8 * i >= rows.count) continue;\n float v",
        "float v", "pointwise", True),
    Bug("the gate of another image", PRODUCT, "rows.group, chunk, lane.t, own",
        "0, chunk, lane.t, own", "pointwise"),
    Bug("moments merged with half of the lanes", PRODUCT, "bit = 4; bit < 32", "bit = 4; bit < 16",
        "pointwise"),
    Bug("a residual eight rows off", PRODUCT, "from + row * p.residual_step",
        "from + (row - 8 * i) * p.residual_step", "pointwise"),
    Bug("rows past the end in a weight gradient", OUTER, "if (8 * i >= count) rows[i] = {};", "",
        "pointwise"),
    Bug("the same eight rows turned twice", OUTER, "transpose(rows[half].words[i])",
        "transpose(rows[0].words[i])", "pointwise"),
    Bug("SE sums of half of the lanes", PROJECT, "bit = 4; bit < 32", "bit = 8; bit < 32",
        "pointwise"),
    Bug("a slope missing from an SE sum", PROJECT, "sums[2][ch] = fmaf(h, xhat",
        "sums[2][ch] = fmaf(d, xhat", "pointwise"),
    Bug("a weight gradient without the gate", PROJECT, "u[e] *= gate[ch];", "", "pointwise"),
    Bug("stochastic depth left out", "cuda/operand.cuh", "bn_input_grad(drop * g[e]",
        "bn_input_grad(g[e]", "pointwise"),
]  # fmt: skip

SQUEEZE_EXCITE = [
    Bug("programs that write the same partials", SE, "partials[(chunk * p.n + n) * p.c + channel]",
        "partials[(0 * chunk * p.n + n) * p.c + channel]", "squeeze_excite"),
    Bug("a slope's factor", "cuda/activation.cuh", "*derivative = fmaf(value, 1.0f - s, s);",
        "*derivative = fmaf(value, 1.0f + s, s);", "squeeze_excite"),
    Bug("wrong shuffle distance", MLP, "int distance = kCount; distance < kWarp;",
        "int distance = 2 * kCount; distance < kWarp;", "squeeze_excite"),
    Bug("shuffle in divergent code", MLP, "if (row0 + k * groups >= rows) break;",
        "if (row0 + k * groups + group >= rows) break;", "squeeze_excite"),
    Bug("a vector is not where it was put", MLP, "load_some(x + i * stride + place(column + e),",
        "load_some(x + i * stride + column + e,", "squeeze_excite"),
    Bug("weights behind the row", MLP, "if (k < rows && i * kPerWord < count)",
        "if (k < rows && i * kPerWord <= count)", "squeeze_excite", True),
    Bug("rows that are not aligned", MLP, "columns * size_of(dtype) % bytes == 0 &&",
        "columns * size_of(dtype) % bytes < 16 &&", "squeeze_excite", True),
    Bug("only the block's own channels", MLP, "rank < cluster ? *shared_of(own, rank)",
        "rank < cluster ? *own", "squeeze_excite"),
    Bug("a block of the cluster too many", MLP, "rank < cluster ? *shared_of(own, rank)",
        "rank <= cluster ? *shared_of(own, rank)", "squeeze_excite"),
    Bug("no wait for the weights", GATE, "wait_async<0>();", "", "squeeze_excite"),
    Bug("sums of other blocks read too early", GATE, "if (!reduce) break;\n sync_cluster();",
        "if (!reduce) break;\n __syncthreads();", "squeeze_excite"),
    Bug("race between the MLP's layers", GATE, "logits[i] = 0.0f;\n sync_cluster();",
        "logits[i] = 0.0f;", "squeeze_excite"),
    Bug("a block leaves while its sums are read", GATE, "logits[i] = 0.0f;\n sync_cluster();",
        "logits[i] = 0.0f;\n __syncthreads();", "squeeze_excite"),
    Bug("uninitialised shared memory", GATE, "hidden[image * m.hidden + place(r)] = value;",
        "if (r < m.r) hidden[image * m.hidden + place(r)] = value;", "squeeze_excite"),
    Bug("a strip of the squeeze too many", GATE, "if (t + k * parts >= p.t) break;",
        "if (t + k * parts > p.t) break;", "squeeze_excite", True),
    Bug("backward: no barrier before the gradient of the hidden units is used", GATE_BWD,
        "sync_cluster();\n    if (b.channels <= 0) return;", "if (b.channels <= 0) return;",
        "squeeze_excite"),
    Bug("backward: no wait for the copies", GATE_BWD,
        "wait_async<0>();\n        __syncthreads();\n        const int end",
        "__syncthreads();\n        const int end", "squeeze_excite"),
    Bug("backward: a stage overwritten while it is read", GATE_BWD,
        "if (n0 > 0) __syncthreads();", "", "squeeze_excite"),
    Bug("backward: images that are not there", GATE_BWD, "min(kStage, p.n - n0)", "kStage",
        "squeeze_excite", True),
    Bug("backward: the last part of the images is dropped", GATE_BWD,
        "for (int other = 0; other < parts; other++) {\n            sum += shared[v",
        "for (int other = 0; other + 1 < parts; other++) {\n            sum += shared[v",
        "squeeze_excite"),
    Bug("backward: sums over images of one warp", GATE_BWD, "other < kWeightThreads / kWarp;",
        "other < 1;", "squeeze_excite"),
]  # fmt: skip

BATCH_NORM = [
    Bug("biased running variance", NORM, "float(fold.var * unbiased)", "float(fold.var)",
        "batch_norm"),
    Bug("all partials in one row", NORM, "partials + int64_t(thread.part) * 2 * p.c",
        "partials + int64_t(0) * 2 * p.c", "batch_norm"),
    Bug("a work item too long", SWEEP, "int(min(int64_t(first) + sweep.chunk, sweep.pixels))",
        "int(int64_t(first) + sweep.chunk + 0 * sweep.pixels)", "batch_norm"),
    Bug("a batch of pixels that ends too late", SWEEP,
        "if (pixel + k * sweep.rows < end) use(k, pixel + k * sweep.rows);",
        "use(k, pixel + k * sweep.rows);", "batch_norm", True),
    Bug("no barrier before shared memory is written again", SWEEP,
        "for (int s = 0; s < kSums; s++) {\n        __syncthreads();",
        "for (int s = 0; s < kSums; s++) {", "batch_norm"),
    Bug("no barrier before shared memory is read", SWEEP,
        "= sums[s][k];\n        }\n        __syncthreads();", "= sums[s][k];\n        }",
        "batch_norm"),
    Bug("no barrier before the parts of the rows are added", SWEEP,
        "shared[threadIdx.x] = sum;\n            __syncthreads();", "shared[threadIdx.x] = sum;",
        "batch_norm"),
    Bug("32-bit offset of an image", SWEEP, "if (dense_rows) return n * map.n_stride +",
        "if (dense_rows) return n * int(map.n_stride) +", "far_apart"),
    Bug("32-bit offset of a row", SWEEP, "n * map.n_stride + h * map.h_stride",
        "n * map.n_stride + h * int(map.h_stride)", "far_apart"),
    Bug("no barrier in the second stage", REDUCE,
        "partial[threadIdx.x] = sums[0];\n    __syncthreads();", "partial[threadIdx.x] = sums[0];",
        "batch_norm"),
    Bug("a second stage that drops terms", REDUCE, "if (k * step < here) load_some(",
        "if ((k + 1) * step < here) load_some(", "batch_norm"),
    Bug("a second stage that stores past the end", REDUCE, "if (l >= length) return;", "",
        "squeeze_excite", True),
    Bug("read past the end of the parameters", SWEEP,
        "load_channels(p + c + e, vectors, channels - e, some);",
        "load_channels(p + c + e, vectors, channels, some);", "batch_norm", True),
]  # fmt: skip

DEPTHWISES = [*DEPTHWISE, *DEPTHWISE_TENSOR, *DEPTHWISE_BOXES, *DEPTHWISE_BWD]
BUGS = [*DEPTHWISES, *POINTWISE, *SQUEEZE_EXCITE, *BATCH_NORM]
