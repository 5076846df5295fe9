#include "cpu/engine.h"

#include <algorithm>
#include <list>
#include <map>
#include <mutex>
#include <stdexcept>

#include "cpu/forward.h"
#include "cpu/team.h"

namespace effnet_fast::cpu {

struct Engine::State {
    virtual ~State() = default;
    virtual void run(const Input& x, int threads, Result result, float* out, double* seconds) = 0;
    // A plan stays what it is for as long as it is held.
    virtual std::shared_ptr<const Plan> plan(int h, int w) = 0;
    virtual size_t workspace_bytes(int h, int w, int threads) = 0;

    Network network;  // less its weights: the packed copies are what runs
    int weight_bytes = 0;
};

template <typename T>
struct Engine::StateOf : Engine::State {
    // Sizes seen last; a plan takes 10 MB for B7's images, of which the workspaces are most.
    static constexpr size_t kPlansKept = 8;

    struct Sized {
        Plan plan;
        std::multimap<int, std::unique_ptr<Workspace<T>>> idle;  // by number of threads
    };

    const Kernels<T>& kernels;
    Packed<T> packed;
    std::mutex mutex;
    std::list<std::pair<std::pair<int, int>, std::shared_ptr<Sized>>> recent;

    StateOf(const Network& n, const Kernels<T>& k) : kernels(k) {
        check(n);
        packed = pack<T>(n, k.panel_blocks);
        network = n;
        weight_bytes = sizeof(T);
        const auto drop = [](auto& layer) { layer.weight = {}; };
        for (Conv* c : {&network.stem, &network.head}) drop(*c);
        drop(network.classifier);
        for (Block& b : network.blocks) {
            for (Conv* c : {&b.expand, &b.depthwise, &b.project}) drop(*c);
            for (Linear* l : {&b.reduce, &b.widen}) drop(*l);
        }
    }

    std::shared_ptr<Sized> sized(int h, int w) {
        const std::lock_guard lock(mutex);
        const auto found = std::find_if(recent.begin(), recent.end(), [&](const auto& entry) {
            return entry.first == std::pair(h, w);
        });
        if (found != recent.end()) {
            recent.splice(recent.begin(), recent, found);
        } else {
            auto fresh = std::make_shared<Sized>();
            fresh->plan = make_plan(network, h, w);
            recent.emplace_front(std::pair(h, w), std::move(fresh));
            if (recent.size() > kPlansKept) recent.pop_back();
        }
        return recent.front().second;
    }

    std::shared_ptr<const Plan> plan(int h, int w) override {
        const auto found = sized(h, w);
        return {found, &found->plan};
    }

    size_t workspace_bytes(int h, int w, int threads) override {
        return Workspace<T>(sized(h, w)->plan, threads).arena.bytes();
    }

    // A workspace for the time of one call.
    class Lease {
    public:
        Lease(StateOf& state, Sized& sized, int threads)
            : state_(state), sized_(sized), threads_(threads) {
            {
                const std::lock_guard lock(state.mutex);
                const auto idle = sized.idle.find(threads);
                if (idle != sized.idle.end()) {
                    workspace_ = std::move(idle->second);
                    sized.idle.erase(idle);
                }
            }
            if (!workspace_) workspace_ = std::make_unique<Workspace<T>>(sized.plan, threads);
        }
        Lease(Lease&&) = default;
        ~Lease() {
            if (!workspace_) return;
            const std::lock_guard lock(state_.mutex);
            sized_.idle.emplace(threads_, std::move(workspace_));
        }
        Workspace<T>& operator*() { return *workspace_; }

    private:
        StateOf& state_;
        Sized& sized_;
        int threads_;
        std::unique_ptr<Workspace<T>> workspace_;
    };

    void run(const Input& x, int threads, Result result, float* out, double* seconds) override {
        const auto held = sized(x.h, x.w);
        Job<T> job = {network, packed, held->plan, kernels, x, result, seconds};
        const BlockPlan& last = held->plan.blocks.back();
        const long values = result == Result::features
                                ? long(last.rows.out) * last.columns.out * network.head.out
                            : network.classifier.out ? network.classifier.out
                                                     : network.head.out;
        // A batch that feeds all threads is shared by images, which needs no barrier.
        if (threads > 1 && x.n >= threads) {
            std::vector<Lease> leases;
            leases.reserve(threads);
            for (int i = 0; i < threads; ++i) leases.emplace_back(*this, *held, 1);
            job.seconds = nullptr;  // of one of several streams it would say little
            parallel(threads, [&](int tid, int team) {
                for (int i = tid; i < x.n; i += team) {
                    forward(job, *leases[tid], i, out + i * values, 0, 1);
                }
            });
            return;
        }
        Lease lease(*this, *held, threads);
        if (threads == 1) {
            for (int i = 0; i < x.n; ++i) forward(job, *lease, i, out + i * values, 0, 1);
            return;
        }
        parallel(threads, [&](int tid, int team) {
            for (int i = 0; i < x.n; ++i) {
                forward(job, *lease, i, out + i * values, tid, team);
                barrier(&job);  // the next image overwrites what the classifier reads
            }
        });
    }
};

Engine::Engine(const Network& network, Isa isa, Type type) {
    if (type == Type::fp32) {
        state_ = std::make_unique<StateOf<float>>(network, fp32_kernels(isa));
    } else {
        state_ = std::make_unique<StateOf<Bf16>>(network, bf16_kernels(isa));
    }
}

Engine::~Engine() = default;

void Engine::run(const Input& x, int threads, Result result, float* out, double* seconds) const {
    const Network& network = state_->network;
    if (x.c != network.stem.in) throw std::invalid_argument("channels are not the network's");
    if (x.is_uint8 && network.scale.empty()) {
        throw std::invalid_argument("the network has no normalisation for uint8 images");
    }
    if (x.n > 0) state_->run(x, threads, result, out, seconds);
}

std::pair<int, int> Engine::feature_size(int h, int w) const {
    const BlockPlan& last = state_->plan(h, w)->blocks.back();
    return {last.rows.out, last.columns.out};
}

std::vector<Step> Engine::steps(int h, int w) const {
    State& s = *state_;
    const auto held = s.plan(h, w);
    const Plan& plan = *held;
    std::vector<Step> steps;
    const auto size = [](const Axis& rows, const Axis& columns, bool out) {
        return std::to_string(out ? rows.out : rows.in) + "x" +
               std::to_string(out ? columns.out : columns.in);
    };
    const auto add = [&](const std::string& name, const std::string& shape, double macs,
                         double weights) {
        steps.push_back({name, shape, macs, s.weight_bytes * weights});
    };
    for (size_t i = 0; i < plan.blocks.size(); ++i) {
        const Block& b = s.network.blocks[i];
        const BlockPlan& p = plan.blocks[i];
        const std::string name = "blocks." + std::to_string(i);
        const Conv& d = b.depthwise;
        const double in = double(p.rows.in) * p.columns.in;
        const double out = double(p.rows.out) * p.columns.out;
        const double first = i == 0 ? double(s.network.stem.in) * s.network.stem.kernel *
                                          s.network.stem.kernel * s.network.stem.out
                                    : double(b.expand.in) * b.expand.out;
        const double taps = double(d.kernel) * d.kernel * d.out;
        add(name + (i == 0 ? ".stem+depthwise" : b.expand.out ? ".expand+depthwise" : ".depthwise"),
            std::to_string(d.out) + "x" + size(p.rows, p.columns, false) + " -> " +
                size(p.rows, p.columns, true) + ", ring of " + std::to_string(p.ring_rows) +
                    " rows",
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
    return state_->workspace_bytes(h, w, threads);
}

}  // namespace effnet_fast::cpu
