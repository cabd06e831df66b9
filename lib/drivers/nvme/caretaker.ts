// What a controller's home does now and then while the controller is ready: it sees that it is
// still there, deals with commands that take too long, with what ended threads left, and with
// memory that was closed.

import { native } from '../../native.js';
import { abort, deleteQueue } from './admin-commands.js';
import { createPair, isAbsent } from './bring-up.js';
import { AdminOp, Lid } from './commands.js';
import type { NvmeController } from './controller.js';
import { Csts, Reg } from './registers.js';
import type { Task } from './steps.js';
import { hasPassed, Watchdog, type Expired, type InFlight } from './watchdog.js';

/** Looks after an abort before the controller is reset. */
const ABORT_LOOKS = 2;

export class Caretaker {
  private readonly controller: NvmeController;
  private readonly watchdog: Watchdog;
  private readonly recovering = new Set<number>();
  private timer: NodeJS.Timeout | null = null;
  private watch = 0;
  private lookedAt = 0;
  /** Operations that may still use memory which was closed. */
  private stale: InFlight[] | null = null;

  constructor(controller: NvmeController) {
    this.controller = controller;
    this.watchdog = new Watchdog(controller.table, controller.settings.timeoutMs);
  }

  /** Looks from the event loop, which it does not keep alive, at each admin interrupt too. */
  start(): void {
    const fd = this.controller.eventFds[0];
    if (fd !== undefined) {
      this.watch = native.watchOpen(fd, () => {
        native.eventfdDrain(fd);
        this.controller.lookAround();
      });
      native.watchSet(this.watch, true, false);
    }
    this.timer = setInterval(() => this.controller.lookAround(), this.watchdog.lookMs);
    this.timer.unref();
  }

  stop(): void {
    if (this.timer !== null) clearInterval(this.timer);
    this.timer = null;
    if (this.watch !== 0) native.watchClose(this.watch);
    this.watch = 0;
  }

  /** Looks when it is time to. */
  lookAround(): void {
    const now = performance.now();
    if (now - this.lookedAt < this.watchdog.lookMs / 2) return;
    this.lookedAt = now;
    if (this.controller.isReady) this.look();
  }

  private look(): void {
    const { controller } = this;
    const { bar, pci, admin } = controller;
    const status = bar.read32(Reg.CSTS);
    const present = status === 0 ? bar.read32(Reg.VS) : status;
    if (pci.gone || bar.lost || isAbsent(present)) {
      controller.remove();
      return;
    }
    const findings = this.watchdog.look();
    if ((status & Csts.CFS) !== 0) controller.startReset('fatal status (CSTS.CFS)');
    else if (findings.stray || admin.strays > 0) {
      admin.strays = 0;
      controller.startReset('a completion that no command had');
    } else this.actOn(findings.expired);
    for (const pair of findings.orphans) this.startRecovery(pair);
    if (findings.more) controller.startReport('error', 0, Lid.ERROR_INFORMATION);
    this.reapMemory();
  }

  /** Overdue commands: aborted at first, then the controller is reset. */
  private actOn(expired: readonly Expired[]): void {
    const { controller } = this;
    for (const { pair, cid, serial, overdue } of expired) {
      if (overdue === 0) {
        controller.counters.timeouts++;
        controller.counters.aborts++;
        controller.table.views(pair).blame[cid] = serial;
        void controller.run(abort(pair + 1, cid)).catch(() => undefined);
      } else if (overdue >= ABORT_LOOKS) {
        controller.startReset(`command ${cid} of queue ${pair + 1} does not end`);
        return;
      }
    }
  }

  private startRecovery(pair: number): void {
    if (this.recovering.has(pair)) return;
    this.recovering.add(pair);
    const task = this.controller.steps.run(this.recoverPair(pair));
    void task.finally(() => this.recovering.delete(pair));
  }

  /** A pair whose owner ended: its commands end with its queues, which are made anew. */
  private *recoverPair(pair: number): Task<void> {
    const { controller } = this;
    const { admin, pairs, settings, table } = controller;
    if (table.owner(pair).claim === 0 || pairs.ownerLives(pair) || !controller.isReady) return;
    const { adminTimeoutMs } = settings;
    try {
      yield* admin.demand(deleteQueue(AdminOp.DELETE_IO_SQ, pair + 1), adminTimeoutMs);
      yield* admin.demand(deleteQueue(AdminOp.DELETE_IO_CQ, pair + 1), adminTimeoutMs);
      yield* createPair(controller, pair);
      pairs.forget(pair);
    } catch {
      controller.startReset(`queue ${pair + 1} of an ended thread could not be made anew`);
    }
  }

  /** Unmaps closed memory once nothing that was in flight when that was seen is left. */
  reapMemory(): void {
    const { dma } = this.controller.pci;
    if (this.stale === null) {
      if (!dma.stale) return;
      // What a thread issues after this look uses none of it: its bytes in the map are 0.
      dma.collect();
      this.stale = this.watchdog.snapshot();
      return;
    }
    if (!hasPassed(this.stale)) return;
    this.stale = null;
    dma.reap();
  }
}
