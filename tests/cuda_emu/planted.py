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
BACKWARD = "cuda/depthwise_bwd.cu"
SE, NORM = "cuda/squeeze_excite.cu", "cuda/batch_norm.cu"
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
        "count += m.count, sum += double(m.count) * m.mean;",
        "count += m.count, sum += double(m.count) * m.mean + m.mean;", "depthwise"),
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
    Bug("the same eight rows turned twice", OUTER, "words[i][1] = transpose(high.words[i]);",
        "words[i][1] = transpose(low.words[i]);", "pointwise"),
    Bug("SE sums of half of the lanes", PROJECT, "bit = 4; bit < 32", "bit = 8; bit < 32",
        "pointwise"),
    Bug("a slope missing from an SE sum", PROJECT, "sums[2][ch] = fmaf(h, xhat",
        "sums[2][ch] = fmaf(d, xhat", "pointwise"),
    Bug("a weight gradient without the gate", PROJECT, "u[e] *= gate[ch];", "", "pointwise"),
    Bug("stochastic depth left out", "cuda/operand.cuh", "bn_input_grad(drop * g[e]",
        "bn_input_grad(g[e]", "pointwise"),
]  # fmt: skip

SQUEEZE_EXCITE = [
    Bug("wrong shuffle distance", SE, "int distance = lanes / 2;", "int distance = lanes / 4;",
        "squeeze_excite"),
    Bug("shuffle in divergent code", SE, "const W* const row = static_cast<const W*>("
        "g.weights.w_expand)", "if (own >= g.c) break;\nconst W* const row = static_cast<const W*>("
        "g.weights.w_expand)", "squeeze_excite"),
    Bug("race between the MLP's layers", SE,
        "hidden[r] = apply<float>(g.act, g.act.factor * u); }); __syncthreads();",
        "hidden[r] = apply<float>(g.act, g.act.factor * u); });", "squeeze_excite"),
    Bug("uninitialised shared memory", SE, "hidden_s[image][unit] = inside ? hidden[at] : 0.0f;",
        "if (inside) hidden_s[image][unit] = hidden[at];", "squeeze_excite"),
    Bug("programs that write the same partials", SE, "partials[(chunk * p.n + n) * p.c + channel]",
        "partials[(0 * chunk * p.n + n) * p.c + channel]", "squeeze_excite"),
    Bug("a slope's factor", "cuda/activation.cuh", "*derivative = fmaf(value, 1.0f - s, s);",
        "*derivative = fmaf(value, 1.0f + s, s);", "squeeze_excite"),
    Bug("a stage overwritten while it is read", SE, "n0 += kStage) {\n        __syncthreads();",
        "n0 += kStage) {", "squeeze_excite"),
]  # fmt: skip

BATCH_NORM = [
    Bug("biased running variance", NORM, "float(var * unbiased)", "float(var)", "batch_norm"),
    Bug("all partials in one row", NORM, "partials + int64_t(thread.part) * 2 * p.c",
        "partials + int64_t(0) * 2 * p.c", "batch_norm"),
    Bug("a work item too long", SWEEP, "int(min(int64_t(first) + sweep.chunk, sweep.pixels))",
        "int(int64_t(first) + sweep.chunk + 0 * sweep.pixels)", "batch_norm"),
    Bug("no barrier before shared memory is written again", SWEEP,
        "for (int s = 0; s < kSums; s++) {\n        __syncthreads();",
        "for (int s = 0; s < kSums; s++) {", "batch_norm"),
    Bug("no barrier before shared memory is read", SWEEP,
        "= sums[s][e];\n        }\n        __syncthreads();", "= sums[s][e];\n        }",
        "batch_norm"),
    Bug("32-bit offset of an image", SWEEP, "if (dense_rows) return n * map.n_stride +",
        "if (dense_rows) return n * int(map.n_stride) +", "far_apart"),
    Bug("32-bit offset of a row", SWEEP, "n * map.n_stride + h * map.h_stride",
        "n * map.n_stride + h * int(map.h_stride)", "far_apart"),
    Bug("no barrier in the second stage", REDUCE,
        "partial[row][column] = sum;\n    __syncthreads();", "partial[row][column] = sum;",
        "batch_norm"),
    Bug("a second stage that drops terms", REDUCE, "t < terms; t += kRows",
        "t + 1 < terms; t += kRows", "batch_norm"),
    Bug("read past the end of the parameters", SWEEP, "p != nullptr && e < channels ? p[c + e]",
        "p != nullptr ? p[c + e]", "batch_norm", True),
]  # fmt: skip

BUGS = [*DEPTHWISE, *DEPTHWISE_BWD, *POINTWISE, *SQUEEZE_EXCITE, *BATCH_NORM]
