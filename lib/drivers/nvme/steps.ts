// Steps: work of a controller that takes time (init, reset, admin commands) and never blocks. A
// task is a generator that yields while it waits; `advance` goes on with each that can.
//
// The event loop advances tasks by a timer or at an interrupt. A thread that drives a queue in a
// loop of its own, and so keeps the event loop from running, advances them from its idle polls: a
// stuck device is noticed and reset there too.

/** A task: yields while there is nothing to do but wait. */
export type Task<T> = Generator<undefined, T, undefined>;

/** Advances at every turn of the loop at first, later by a timer: most waits are short. */
const EAGER_TURNS = 200;
const TURN_MS = 1;

interface Running {
  readonly task: Task<unknown>;
  readonly resolve: (value: unknown) => void;
  readonly reject: (cause: unknown) => void;
}

export class Steps {
  private running: Running[] = [];
  private turns = 0;
  private scheduled = false;
  private advancing = false;

  /** Runs a task to its end; its error rejects. */
  run<T>(task: Task<T>): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      this.running.push({ task, resolve: resolve as (value: unknown) => void, reject });
      this.turns = 0;
      this.schedule();
    });
  }

  /** Goes on with every task until none is left, at most `turns` times. */
  async finish(turns: number): Promise<void> {
    for (let turn = 0; turn < turns && this.running.length > 0; turn++) {
      this.advance();
      await new Promise((resolve) => setImmediate(resolve));
    }
  }

  /** Goes on with every task, once. Tasks that are begun meanwhile run from the next call on. */
  advance(): void {
    if (this.advancing || this.running.length === 0) return;
    this.advancing = true;
    try {
      const now = this.running;
      this.running = [];
      const waiting = now.filter((entry) => !finish(entry));
      this.running = [...waiting, ...this.running];
    } finally {
      this.advancing = false;
    }
  }

  private schedule(): void {
    if (this.scheduled || this.running.length === 0) return;
    this.scheduled = true;
    const turn = (): void => {
      this.scheduled = false;
      this.advance();
      this.schedule();
    };
    if (this.turns++ < EAGER_TURNS) setImmediate(turn);
    else setTimeout(turn, TURN_MS);
  }
}

/** One step of a task; true when it has ended. */
function finish(entry: Running): boolean {
  try {
    const step = entry.task.next();
    if (step.done !== true) return false;
    entry.resolve(step.value);
  } catch (cause) {
    entry.reject(cause);
  }
  return true;
}

/** Waits at least `ms`. */
export function* pause(ms: number): Task<void> {
  const until = performance.now() + ms;
  while (performance.now() < until) yield;
}

/** Waits for a promise (what only the event loop can end). */
export function* settled<T>(promise: Promise<T>): Task<T> {
  let outcome: { value: T } | { cause: unknown } | null = null;
  promise.then(
    (value) => (outcome = { value }),
    (cause: unknown) => (outcome = { cause }),
  );
  for (;;) {
    const now = outcome as { value: T } | { cause: unknown } | null;
    if (now === null) {
      yield;
      continue;
    }
    if ('cause' in now) throw now.cause;
    return now.value;
  }
}
