#include "cpu/engine.h"

#include <omp.h>

#include <algorithm>
#include <list>
#include <map>
#include <mutex>
#include <stdexcept>

#include "cpu/forward.h"

namespace effnet_fast::cpu {

struct Engine::State {
    // Sizes seen last; a plan takes 10 MB for B7's images, of which the workspaces are most.
    static constexpr size_t kPlansKept = 8;

    struct Sized {
        Plan plan;
        std::multimap<int, std::unique_ptr<Workspace>> idle;  // by number of threads
    };

    Network network;
    Packed packed;
    const Kernels& kernels;
    mutable std::mutex mutex;
    mutable std::list<std::pair<std::pair<int, int>, std::shared_ptr<Sized>>> recent;

    State(const Network& n, const Kernels& k) : network(n), kernels(k) {
        check(n);
        packed = pack(n, k.panel_blocks);
        // The packed copies are what runs.
        const auto drop = [](auto& layer) { layer.weight = {}; };
        for (Conv* c : {&network.stem, &network.head}) drop(*c);
        drop(network.classifier);
        for (Block& b : network.blocks) {
            for (Conv* c : {&b.expand, &b.depthwise, &b.project}) drop(*c);
            for (Linear* l : {&b.reduce, &b.widen}) drop(*l);
        }
    }

    std::shared_ptr<Sized> sized(int h, int w) const {
        const std::lock_guard lock(mutex);
        const auto found = std::find_if(recent.begin(), recent.end(), [&](const auto& entry) {
            return entry.first == std::pair(h, w);
        });
        if (found != recent.end()) {
            recent.splice(recent.begin(), recent, found);
        } else {
            auto fresh = std::make_shared<Sized>();
            fresh->plan = make_plan(network, h, w, kernels.panel_blocks);
            recent.emplace_front(std::pair(h, w), std::move(fresh));
            if (recent.size() > kPlansKept) recent.pop_back();
        }
        return recent.front().second;
    }

    // A workspace for the time of one call.
    class Lease {
    public:
        Lease(const State& state, Sized& sized, int threads)
            : state_(state), sized_(sized), threads_(threads) {
            {
                const std::lock_guard lock(state.mutex);
                const auto idle = sized.idle.find(threads);
                if (idle != sized.idle.end()) {
                    workspace_ = std::move(idle->second);
                    sized.idle.erase(idle);
                }
            }
            if (!workspace_) workspace_ = std::make_unique<Workspace>(sized.plan, threads);
        }
        Lease(Lease&&) = default;
        ~Lease() {
            if (!workspace_) return;
            const std::lock_guard lock(state_.mutex);
            sized_.idle.emplace(threads_, std::move(workspace_));
        }
        Workspace& operator*() { return *workspace_; }

    private:
        const State& state_;
        Sized& sized_;
        int threads_;
        std::unique_ptr<Workspace> workspace_;
    };
};

Engine::Engine(const Network& network, Isa isa)
    : state_(std::make_unique<State>(network, kernels_of(isa))) {}

Engine::~Engine() = default;

void Engine::run(const Input& x, int threads, Result result, float* out) const {
    const State& s = *state_;
    if (x.c != s.network.stem.in) throw std::invalid_argument("channels are not the network's");
    if (x.is_uint8 && s.network.scale.empty()) {
        throw std::invalid_argument("the network has no normalisation for uint8 images");
    }
    if (x.n == 0) return;
    const auto sized = s.sized(x.h, x.w);
    const Job job = {s.network, s.packed, sized->plan, s.kernels, x, result};
    const auto [h, w] = feature_size(x.h, x.w);
    const Linear& classifier = s.network.classifier;
    const long values = result == Result::features ? long(h) * w * s.network.head.out
                        : classifier.out           ? classifier.out
                                                   : s.network.head.out;
    // A batch that feeds all threads is shared by images, which needs no barrier.
    if (threads > 1 && x.n >= threads) {
        std::vector<State::Lease> leases;
        leases.reserve(threads);
        for (int i = 0; i < threads; ++i) leases.emplace_back(s, *sized, 1);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
        for (int worker = 0; worker < threads; ++worker) {
            for (int i = worker; i < x.n; i += threads) {
                forward(job, *leases[worker], i, out + i * values, 0, 1);
            }
        }
        return;
    }
    State::Lease lease(s, *sized, threads);
    if (threads == 1) {
        for (int i = 0; i < x.n; ++i) forward(job, *lease, i, out + i * values, 0, 1);
        return;
    }
#pragma omp parallel num_threads(threads)
    {
        const int tid = omp_get_thread_num(), team = omp_get_num_threads();
        for (int i = 0; i < x.n; ++i) {
            forward(job, *lease, i, out + i * values, tid, team);
            // The next image overwrites what the classifier reads.
#pragma omp barrier
        }
    }
}

std::pair<int, int> Engine::feature_size(int h, int w) const {
    const BlockPlan& last = state_->sized(h, w)->plan.blocks.back();
    return {last.rows.out, last.columns.out};
}

std::vector<Step> Engine::steps(int h, int w) const {
    const State& s = *state_;
    const auto sized = s.sized(h, w);
    const Plan& plan = sized->plan;
    std::vector<Step> steps;
    const auto size = [](const Axis& rows, const Axis& columns, bool out) {
        return std::to_string(out ? rows.out : rows.in) + "x" +
               std::to_string(out ? columns.out : columns.in);
    };
    const auto add = [&](const std::string& name, const std::string& shape, double macs,
                         double weights) { steps.push_back({name, shape, macs, 4 * weights}); };
    for (size_t i = 0; i < plan.blocks.size(); ++i) {
        const Block& b = s.network.blocks[i];
        const BlockPlan& p = plan.blocks[i];
        const std::string name = "blocks." + std::to_string(i);
        const Conv& d = b.depthwise;
        const double in = double(p.rows.in) * p.columns.in, out = double(p.rows.out) * p.columns.out;
        const double first = i == 0 ? double(s.packed.stem.k) * s.network.stem.out
                                    : double(b.expand.in) * b.expand.out;
        const double taps = double(d.kernel) * d.kernel * d.out;
        add(name + (i == 0 ? ".stem+depthwise" : b.expand.out ? ".expand+depthwise" : ".depthwise"),
            std::to_string(d.out) + "x" + size(p.rows, p.columns, false) + " -> " +
                size(p.rows, p.columns, true) + ", ring of " + std::to_string(p.ring_rows) + " rows",
            first * in + taps * out, first + taps);
        const double squeeze = 2.0 * b.reduce.out * d.out;
        const double weights = double(b.project.in) * b.project.out;
        add(name + (b.reduce.out ? ".se+project" : ".project"),
            std::to_string(d.out) + " -> " + std::to_string(b.project.out) + ", " +
                size(p.rows, p.columns, true),
            weights * out + squeeze, weights + squeeze);
    }
    const Conv& head = s.network.head;
    const BlockPlan& last = plan.blocks.back();
    const double weights = double(head.in) * head.out;
    add("head+pool", std::to_string(head.in) + " -> " + std::to_string(head.out) + ", " +
        size(last.rows, last.columns, true),
        weights * last.rows.out * last.columns.out, weights);
    const Linear& classifier = s.network.classifier;
    if (classifier.out) {
        const double all = double(classifier.in) * classifier.out;
        add("classifier", std::to_string(classifier.in) + " -> " + std::to_string(classifier.out),
            all, all);
    }
    return steps;
}

size_t Engine::workspace_bytes(int h, int w, int threads) const {
    return Workspace(state_->sized(h, w)->plan, threads).bytes();
}

}  // namespace effnet_fast::cpu
