// Fused attention on the CPU: scores, softmax, statistics, codes, strongest keys and the attention output in one pass
// over tiles of rows. Arrays of tokens² numbers are never in memory.
//
// Files: call.h (arguments), reduce.h (passes over a tile), statistics.h (statistics), products.h (matrix products),
// edges.h (strongest keys), vectors.h (stored queries and keys), lanes.h (SIMD vectors of an instruction set). This
// file compiles them once for each instruction set and selects one at run time. A task is one head of one example, or
// all query heads that share its keys. Threads take tasks from a counter. One thread does the entire task, so results
// do not depend on the number of threads.
#include "call.h"

#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
#include <new>
#include <thread>

#include <dlfcn.h>
#include <pthread.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if !defined(__GNUC__)
#error "needs the vector types of GCC or Clang"
#endif
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // caused by the definition of _mm512_undefined_ps in GCC 12
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

namespace headatlas {

#define HEADATLAS_ISA 0
namespace plain {
#include "lanes.h"
#include "products.h"
#include "edges.h"
#include "reduce.h"
#include "vectors.h"
}  // namespace plain
#undef HEADATLAS_ISA
#undef INLINE

#if defined(__x86_64__) && !defined(__clang__)
#define HEADATLAS_X86 1
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define HEADATLAS_ISA 1
namespace avx2 {
#include "lanes.h"
#include "products.h"
#include "edges.h"
#include "reduce.h"
#include "vectors.h"
}  // namespace avx2
#undef HEADATLAS_ISA
#undef INLINE
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#define HEADATLAS_ISA 2
namespace avx512 {
#include "lanes.h"
#include "products.h"
#include "edges.h"
#include "reduce.h"
#include "vectors.h"
}  // namespace avx512
#undef HEADATLAS_ISA
#undef INLINE
#pragma GCC pop_options
#endif

// Thread pool that lives as long as the process and runs one job at a time. It is never destroyed: at exit a thread
// would still wait on a destroyed condition variable, which is undefined behavior.
class Pool {
 public:
  // Calls work() on this thread and on n_threads - 1 others. Returns when all calls have returned.
  void run(int n_threads, const std::function<void()> &work) {
    std::lock_guard<std::mutex> one_job(job_);
    {
      std::lock_guard<std::mutex> lock(state_);
      for (; n_started_ < n_threads - 1; ++n_started_) std::thread([this, i = n_started_] { wait(i); }).detach();
      work_ = &work;
      n_helpers_ = n_running_ = n_threads - 1;
      ++number_;
    }
    wake_.notify_all();
    work();
    std::unique_lock<std::mutex> lock(state_);
    done_.wait(lock, [this] { return n_running_ == 0; });
  }

 private:
  void wait(int index) {
    std::unique_lock<std::mutex> lock(state_);
    for (int64_t last_number = 0;;) {
      wake_.wait(lock, [&] { return number_ != last_number && index < n_helpers_; });
      last_number = number_;
      const std::function<void()> *work = work_;
      lock.unlock();
      (*work)();
      lock.lock();
      if (--n_running_ == 0) done_.notify_one();
    }
  }

  std::mutex job_, state_;
  std::condition_variable wake_, done_;
  const std::function<void()> *work_ = nullptr;
  int n_started_ = 0, n_helpers_ = 0, n_running_ = 0;
  int64_t number_ = 0;
};

static std::atomic<Pool *> the_pool{nullptr};
static std::atomic<bool> forked{false};
// Registered when the library is loaded, so that the handler runs at every later fork.
[[maybe_unused]] static const int registered =
    pthread_atfork(nullptr, nullptr, [] { the_pool.store(nullptr), forked.store(true); });

static Pool &pool() {
  Pool *current = the_pool.load();
  if (!current) {
    Pool *fresh = new Pool;
    if (the_pool.compare_exchange_strong(current, fresh)) return *fresh;
    delete fresh;
  }
  return *current;
}

// Calls work() on n_threads threads, of which n_useful have tasks. If PyTorch's OpenMP runtime is loaded, its threads
// run the work: after each matrix product of the model they spin for milliseconds, and other threads would compete with
// them for cores. OpenMP creates a new team for another number of threads, so all n_threads are called. A forked child
// has the memory of both pools but not their threads, so it starts a new `Pool`.
static void on_threads(int n_threads, int64_t n_useful, const std::function<void()> &work) {
  if (n_threads <= 1 || n_useful <= 1) return work();
  using Parallel = void (*)(void (*)(void *), void *, unsigned, unsigned);
  static const Parallel team = (Parallel)dlsym(RTLD_DEFAULT, "GOMP_parallel");
  if (!team || forked.load()) return pool().run(n_useful < n_threads ? (int)n_useful : n_threads, work);
  team([](void *function) { (*(const std::function<void()> *)function)(); }, (void *)&work, (unsigned)n_threads, 0);
}

}  // namespace headatlas

using headatlas::Call;
using headatlas::Vectors;

extern "C" {

#define EXPORT __attribute__((visibility("default")))

enum { PLAIN = 0, AVX2 = 1, AVX512 = 2 };
enum { DONE = 0, OTHER_CALL = 1, NO_MEMORY = 2, NO_INSTRUCTIONS = 3 };

EXPORT int64_t headatlas_call_bytes() { return (int64_t)sizeof(Call); }

EXPORT int headatlas_supports(int isa) {
#if defined(HEADATLAS_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (isa == AVX2) return avx2;
  if (isa == AVX512)
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  return isa == PLAIN;
}

EXPORT int headatlas_attention(const Call *call, int isa, int n_threads) {
  if (call->call_bytes != (int64_t)sizeof(Call)) return OTHER_CALL;
  if (!headatlas_supports(isa)) return NO_INSTRUCTIONS;
  int64_t longest = 0;
  for (int64_t i = 0; i < call->n_examples; ++i)
    if (call->key_length[i] > longest) longest = call->key_length[i];

  // Query heads that share keys are one task, so that keys are packed once. If that leaves threads idle, each head is a
  // task.
  const int64_t group = call->n_heads / call->n_kv_heads;
  const int64_t per_task = call->n_examples * call->n_kv_heads >= 4 * n_threads || n_threads == 1 ? group : 1;
  const int64_t tasks_per_example = call->n_heads / per_task, n_tasks = call->n_examples * tasks_per_example;
  std::atomic<int64_t> next{0};
  std::atomic<bool> is_out_of_memory{false};

  // The scratch type depends on the instruction set, so the loop over tasks does too.
#define TASKS(ISA)                                                                                               \
  [&] {                                                                                                          \
    int64_t task = next.fetch_add(1);                                                                            \
    if (task >= n_tasks) return;                                                                                 \
    const int64_t bytes = headatlas::ISA::lay_out(*call, longest, nullptr, nullptr) * (int64_t)sizeof(float);     \
    void *memory = std::aligned_alloc(64, (size_t)bytes);                                                        \
    if (!memory) return is_out_of_memory.store(true);                                                             \
    headatlas::ISA::Scratch scratch;                                                                             \
    headatlas::ISA::lay_out(*call, longest, (float *)memory, &scratch);                                          \
    for (; task < n_tasks; task = next.fetch_add(1))                                                             \
      headatlas::ISA::reduce_heads(*call, task / tasks_per_example, task % tasks_per_example * per_task, per_task, \
                                   scratch);                                                                     \
    std::free(memory);                                                                                           \
  }
  std::function<void()> work = TASKS(plain);
#if defined(HEADATLAS_X86)
  if (isa == AVX2) work = TASKS(avx2);
  if (isa == AVX512) work = TASKS(avx512);
#endif
#undef TASKS
  try {
    headatlas::on_threads(n_threads, n_tasks, work);
  } catch (...) {  // a thread cannot be started
    return NO_MEMORY;
  }
  return is_out_of_memory.load() ? NO_MEMORY : DONE;
}

// Names of the statistics in the order of `statistic_row`, each followed by a space.
EXPORT const char *headatlas_statistics() { return headatlas::STATISTIC_NAMES; }

EXPORT int64_t headatlas_vectors_bytes() { return (int64_t)sizeof(Vectors); }

EXPORT int headatlas_vectors(const Vectors *call, int isa, int n_threads) {
  if (call->call_bytes != (int64_t)sizeof(Vectors)) return OTHER_CALL;
  if (!headatlas_supports(isa)) return NO_INSTRUCTIONS;
  int64_t longest = 0, n_tokens = 0;
  for (int64_t i = 0; i < call->n_examples; ++i) {
    if (call->length[i] > longest) longest = call->length[i];
    n_tokens += call->length[i];
  }
  constexpr int64_t BLOCK = 256;               // tokens of a task
  constexpr int64_t THREAD_NUMBERS = 1 << 16;  // numbers of a thread; waking a thread takes as long as writing them
  const int64_t n_blocks = (longest + BLOCK - 1) / BLOCK, n_tasks = call->n_examples * n_blocks;
  const int64_t n_useful = 1 + n_tokens * call->n_heads * call->d_head / THREAD_NUMBERS;
  auto store_block = headatlas::plain::store_block;
#if defined(HEADATLAS_X86)
  if (isa == AVX2) store_block = headatlas::avx2::store_block;
  if (isa == AVX512) store_block = headatlas::avx512::store_block;
#endif
  std::atomic<int64_t> next{0};
  const std::function<void()> work = [&] {
    for (int64_t task; (task = next.fetch_add(1)) < n_tasks;) {
      const int64_t example = task / n_blocks, first = task % n_blocks * BLOCK, length = call->length[example];
      if (first >= length) continue;
      const int32_t block_largest = store_block(*call, example, first, first + BLOCK < length ? first + BLOCK : length);
      int32_t *largest = call->largest + example;
      int32_t previous = __atomic_load_n(largest, __ATOMIC_RELAXED);
      while (previous < block_largest &&
             !__atomic_compare_exchange_n(largest, &previous, block_largest, false, __ATOMIC_RELAXED,
                                          __ATOMIC_RELAXED)) {
      }
    }
  };
  try {
    headatlas::on_threads(n_threads, n_tasks < n_useful ? n_tasks : n_useful, work);
  } catch (...) {  // a thread cannot be started
    return NO_MEMORY;
  }
  return DONE;
}
}
