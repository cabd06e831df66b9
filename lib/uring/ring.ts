// Ring: one io_uring instance, its queues driven from TypeScript as typed arrays.
//
//   const at = ring.next();              // word index of a free entry in ring.sqes, -1 when full
//   ring.sqes[at + Sqe.opcode] = …;      // fill what differs from zero
//   ring.submit();                       // publish the tail, one io_uring_enter
//   for (let n = ring.ready(); n > 0; n--) { const at = ring.cqeAt(0); …; ring.advance(1); }
//
// Invariants
// 1. tail is ours, head the kernel's (submission); head is ours, tail the kernel's (completion).
//    All are free-running 32-bit integers kept as int32.
// 2. Entries are zero but for what the user of an entry writes; who sets words of op-specific use
//    beyond Sqe.bufIndex clears them again.
// 3. Used by the thread that opened it only (SINGLE_ISSUER where the kernel has it).
// 4. An address in an entry is the user's responsibility: drivers check it against the access
//    map.

import { errnoCode } from '../errors.js';
import { native, type UringRecord } from '../native.js';
import { fence } from '../wire/index.js';
import { Control, EnterFlag, Setup, SqFlag, Sqe, Register } from './layout.js';
import { setupRing } from './probe.js';

export interface RingOptions {
  /** Submission entries; rounded up to a power of two by the kernel. */
  entries: number;
  cqEntries?: number;
  /** A kernel thread polls the submission queue: no system call to submit, one more CPU busy. */
  sqpoll?: boolean;
  sqThreadIdleMs?: number;
  sqThreadCpu?: number;
  /** Completions by polling the device (O_DIRECT on devices with poll queues). */
  iopoll?: boolean;
  /**
   * The user chooses entries by index (push) instead of taking them in order (next): an entry then
   * stays as it is until its operation completes.
   */
  indexed?: boolean;
  /** 128-byte entries and 32-byte completions (device passthrough). */
  big?: boolean;
  /** Setup flags not to use even where the kernel has them: for tests of the fallbacks. */
  avoid?: number;
}

/** One function and one block for all rings of this thread: V8 keeps both as constants. */
const callEnter = native.uringEnter;
const control = new Uint32Array(native.uringControl);

/**
 * The control block of this thread's system calls (words: Control). Who measures sets Control.stamp
 * and finds the clock as of each call's return there: a native call less than reading it.
 */
export const enterControl: Uint32Array = control;

const NO_TIMEOUT = 0xffffffff;
/** Bit of the CQ ring's flags word: completions do not signal the registered eventfd. */
const CQ_EVENTFD_DISABLED = 1;

export class Ring {
  // What every operation touches stands first, together: after a system call little is in the
  // cache.
  readonly sqes: Uint32Array;
  /** The mapped rings as words; completions stand at cqeAt(i). */
  readonly rings: Uint32Array;
  private tail = 0;
  private submitted = 0;
  private head = 0;
  private callCount = 0;
  private readonly sqArray: number;
  private readonly sqHead: number;
  private readonly sqTail: number;
  private readonly sqFlags: number;
  private readonly cqHead: number;
  private readonly cqTail: number;
  private readonly cqes: number;
  private readonly sqMask: number;
  private readonly cqMask: number;
  readonly entries: number;
  readonly sqeWords: number;
  readonly cqeWords: number;
  private readonly id: number;
  private readonly polled: boolean;
  private readonly sqpoll: boolean;
  readonly fd: number;
  readonly cqEntries: number;
  /** IORING_SETUP_* in force. */
  readonly setupFlags: number;
  readonly features: number;
  private readonly cqOverflow: number;
  private readonly cqFlags: number;
  private eventfd = -1;
  private open = true;

  private constructor(record: UringRecord) {
    this.sqes = new Uint32Array(record.sqes);
    this.rings = new Uint32Array(record.rings, 0, record.rings.byteLength >>> 2);
    this.sqArray = record.sqArray >>> 2;
    this.sqHead = record.sqHead >>> 2;
    this.sqTail = record.sqTail >>> 2;
    this.sqFlags = record.sqFlags >>> 2;
    this.cqHead = record.cqHead >>> 2;
    this.cqTail = record.cqTail >>> 2;
    this.cqes = record.cqes >>> 2;
    this.sqMask = record.sqEntries - 1;
    this.cqMask = record.cqEntries - 1;
    this.entries = record.sqEntries;
    this.sqeWords = (record.flags & Setup.SQE128) !== 0 ? 2 * Sqe.words : Sqe.words;
    this.cqeWords = (record.flags & Setup.CQE32) !== 0 ? 8 : 4;
    this.id = record.id;
    this.polled = (record.flags & Setup.IOPOLL) !== 0;
    this.sqpoll = (record.flags & Setup.SQPOLL) !== 0;
    this.fd = record.fd;
    this.cqEntries = record.cqEntries;
    this.setupFlags = record.flags;
    this.features = record.features;
    this.cqOverflow = record.cqOverflow >>> 2;
    this.cqFlags = record.cqFlags >>> 2;
    if ((record.flags & Setup.NO_SQARRAY) === 0) {
      for (let i = 0; i < record.sqEntries; i++) this.rings[this.sqArray + i] = i;
    }
  }

  /**
   * Opens a ring with the best the kernel has; IO_URING_FORBIDDEN, IO_URING_MISSING when it may
   * not.
   */
  static open(options: RingOptions): Ring {
    const avoid = options.avoid ?? 0;
    let wanted = Setup.CLAMP | Setup.SUBMIT_ALL | Setup.SINGLE_ISSUER;
    if (options.indexed !== true) wanted |= Setup.NO_SQARRAY;
    if (options.sqpoll === true) wanted |= Setup.SQPOLL;
    else wanted |= Setup.DEFER_TASKRUN | Setup.TASKRUN_FLAG;
    if (options.iopoll === true) wanted |= Setup.IOPOLL;
    if (options.big === true) wanted |= Setup.SQE128 | Setup.CQE32;
    const modest =
      Setup.CLAMP | (wanted & (Setup.SQPOLL | Setup.IOPOLL | Setup.SQE128 | Setup.CQE32));
    const coop = options.sqpoll === true ? 0 : Setup.COOP_TASKRUN | Setup.TASKRUN_FLAG;
    // What each kernel added: 6.6 NO_SQARRAY, 6.1 DEFER_TASKRUN, 6.0 SINGLE_ISSUER, 5.19
    // COOP_TASKRUN.
    const attempts = [wanted, wanted & ~Setup.NO_SQARRAY, modest | Setup.SUBMIT_ALL | coop, modest];
    let failure: unknown;
    for (let flags of attempts) {
      flags &= ~avoid;
      if ((flags & Setup.SINGLE_ISSUER) === 0) flags &= ~Setup.DEFER_TASKRUN;
      if ((flags & (Setup.DEFER_TASKRUN | Setup.COOP_TASKRUN)) === 0) flags &= ~Setup.TASKRUN_FLAG;
      try {
        return new Ring(
          setupRing({
            entries: options.entries,
            flags,
            ...(options.cqEntries === undefined ? {} : { cqEntries: options.cqEntries }),
            ...(options.sqThreadIdleMs === undefined
              ? {}
              : { sqThreadIdleMs: options.sqThreadIdleMs }),
            ...(options.sqThreadCpu === undefined ? {} : { sqThreadCpu: options.sqThreadCpu }),
          }),
        );
      } catch (error) {
        if (errnoCode(error) !== 'EINVAL') throw error;
        failure = error;
      }
    }
    throw failure;
  }

  /** Names of what is in use, for `info` and reports. */
  describe(): string {
    const names: string[] = [];
    if ((this.setupFlags & Setup.SQPOLL) !== 0) names.push('sqpoll');
    if ((this.setupFlags & Setup.IOPOLL) !== 0) names.push('iopoll');
    if ((this.setupFlags & Setup.SINGLE_ISSUER) !== 0) names.push('single-issuer');
    if ((this.setupFlags & Setup.DEFER_TASKRUN) !== 0) names.push('defer-taskrun');
    if ((this.setupFlags & Setup.COOP_TASKRUN) !== 0) names.push('coop-taskrun');
    if ((this.setupFlags & Setup.NO_SQARRAY) !== 0) names.push('no-sqarray');
    if ((this.setupFlags & Setup.SQE128) !== 0) names.push('sqe128', 'cqe32');
    return names.length === 0 ? 'plain' : names.join(' ');
  }

  /** System calls made so far. */
  get calls(): number {
    return this.callCount;
  }

  /** Completions the kernel had to drop (kernels without NODROP). */
  get overflowed(): number {
    return this.rings[this.cqOverflow]!;
  }

  // hot:begin

  /** Word index in `sqes` of a free entry, which is ours until submit; -1 when the ring is full. */
  next(): number {
    const tail = this.tail;
    if (((tail - this.rings[this.sqHead]!) | 0) >= this.entries) return -1;
    this.tail = (tail + 1) | 0;
    return (tail & this.sqMask) * this.sqeWords;
  }

  /**
   * Queues entry `index` of an indexed ring (at sqes[index * sqeWords]). An index is queued again
   * only after its operation completed, so that the ring never runs over.
   */
  push(index: number): void {
    const tail = this.tail;
    this.rings[this.sqArray + (tail & this.sqMask)] = index;
    this.tail = (tail + 1) | 0;
  }

  /** Whether next would find no free entry. */
  full(): boolean {
    return ((this.tail - this.rings[this.sqHead]!) | 0) >= this.entries;
  }

  /** Entries taken by next and not yet with the kernel. */
  pending(): number {
    return (this.tail - this.submitted) | 0;
  }

  /** Publishes the new entries and tells the kernel. Entries taken, or a negated errno. */
  submit(): number {
    const count = (this.tail - this.submitted) | 0;
    if (count === 0) return 0;
    this.rings[this.sqTail] = this.tail;
    if (this.sqpoll) {
      fence(); // between the tail and the look at NEED_WAKEUP
      this.submitted = this.tail;
      if ((this.rings[this.sqFlags]! & SqFlag.NEED_WAKEUP) !== 0)
        this.enter(0, 0, EnterFlag.SQ_WAKEUP);
      return count;
    }
    const result = this.enter(count, 0, 0);
    if (result > 0) this.submitted = (this.submitted + result) | 0;
    return result;
  }

  /**
   * Submits what is pending and blocks until `minComplete` completions are there, at most
   * `timeoutUs` (-1: no limit). 0 or more, or a negated errno (-ETIME at the limit).
   */
  submitAndWait(minComplete: number, timeoutUs: number): number {
    let count = (this.tail - this.submitted) | 0;
    this.rings[this.sqTail] = this.tail;
    let flags: number = EnterFlag.GETEVENTS;
    if (this.sqpoll) {
      fence();
      this.submitted = this.tail;
      count = 0;
      if ((this.rings[this.sqFlags]! & SqFlag.NEED_WAKEUP) !== 0) flags |= EnterFlag.SQ_WAKEUP;
    }
    control[Control.timeoutUs] = timeoutUs < 0 ? NO_TIMEOUT : timeoutUs;
    const result = this.enter(count, minComplete, flags);
    if (result > 0 && !this.sqpoll) this.submitted = (this.submitted + result) | 0;
    return result;
  }

  /** Completions that are there; lets the kernel deliver those that wait for this thread. */
  ready(): number {
    const count = (this.rings[this.cqTail]! - this.head) | 0;
    if (count !== 0) return count;
    if (this.polled || (this.rings[this.sqFlags]! & (SqFlag.TASKRUN | SqFlag.CQ_OVERFLOW)) !== 0) {
      this.enter(0, 0, EnterFlag.GETEVENTS);
      return (this.rings[this.cqTail]! - this.head) | 0;
    }
    return 0;
  }

  /** Word index in `rings` of the i-th completion that is there. */
  cqeAt(i: number): number {
    return this.cqes + ((this.head + i) & this.cqMask) * this.cqeWords;
  }

  /** Gives `count` completions back to the kernel. */
  advance(count: number): void {
    this.head = (this.head + count) | 0;
    this.rings[this.cqHead] = this.head;
  }

  private enter(toSubmit: number, minComplete: number, flags: number): number {
    control[Control.ring] = this.id;
    control[Control.toSubmit] = toSubmit;
    control[Control.minComplete] = minComplete;
    control[Control.flags] = flags;
    this.callCount = (this.callCount + 1) | 0;
    callEnter();
    return control[Control.result]! | 0;
  }

  // hot:end

  /** Registers descriptors as fixed files 0, 1, …; false where the kernel refuses. */
  registerFiles(fds: readonly number[]): boolean {
    return native.uringRegister(this.id, Register.FILES, Int32Array.from(fds), fds.length) >= 0;
  }

  /** An empty table of `slots` fixed buffers; false where the kernel has none (before 5.19). */
  createBufferTable(slots: number): boolean {
    return native.uringRegisterBuffers(this.id, -1, Uint32Array.of(slots)) >= 0;
  }

  /**
   * Puts memory into a slot of the table (bytes 0 clears it); false where the kernel refuses
   * (memlock).
   */
  setBuffer(slot: number, address: number, bytes: number): boolean {
    const entry = Uint32Array.of(address >>> 0, Math.floor(address / 2 ** 32), bytes, 0);
    return native.uringRegisterBuffers(this.id, slot, entry) >= 0;
  }

  /**
   * The eventfd that armed completions signal; made at the first call. (The ring's own descriptor
   * does not serve: with DEFER_TASKRUN the kernel wakes no poller when work for this thread comes
   * in.)
   */
  eventFd(): number {
    if (this.eventfd < 0) {
      this.eventfd = native.eventfdCreate();
      this.rings[this.cqFlags] = CQ_EVENTFD_DISABLED;
      const registered = native.uringRegister(
        this.id,
        Register.EVENTFD,
        Int32Array.of(this.eventfd),
        1,
      );
      if (registered < 0) throw new Error(`io_uring refused an eventfd: errno ${-registered}`);
    }
    return this.eventfd;
  }

  /** Lets completions signal eventFd() from now on. The caller fences and looks once more. */
  arm(): void {
    // An old signal goes first: what comes from here on is kept, what came before the look finds.
    native.eventfdDrain(this.eventFd());
    this.rings[this.cqFlags] = 0;
  }

  /** Ends that: completions cost no signal any more. */
  disarm(): void {
    this.rings[this.cqFlags] = CQ_EVENTFD_DISABLED;
  }

  /** Limits the kernel's worker threads; [bounded, unbounded], 0 leaves one as it is. */
  limitWorkers(bounded: number, unbounded: number): boolean {
    const limits = Uint32Array.of(bounded, unbounded);
    return native.uringRegister(this.id, Register.IOWQ_MAX_WORKERS, limits, 2) >= 0;
  }

  /**
   * Closes the ring. Drain it first: what is in flight is cancelled by the kernel, at its leisure.
   */
  close(): void {
    if (!this.open) return;
    this.open = false;
    native.uringClose(this.id);
    if (this.eventfd >= 0) native.fileClose(this.eventfd);
  }
}
