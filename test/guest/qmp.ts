// QEMU's monitor: QEMU Machine Protocol, JSON objects on a line each (docs/interop/qmp-spec.txt).

import { LineSocket } from './lines.js';
import type { TetheredProcess } from './tether.js';

export interface QmpEvent {
  event: string;
  data?: Record<string, unknown>;
}

type Reply = { return?: unknown; error?: { class: string; desc: string } };

const REPLY_LIMIT_MS = 30_000;

export class Qmp {
  /** Events so far, in order. */
  readonly events: QmpEvent[] = [];
  private socket!: LineSocket;
  private readonly waiting = new Map<number, (reply: Reply) => void>();
  private readonly watchers = new Set<() => void>();
  private nextId = 1;
  private ended = false;

  static async connect(path: string, owner: TetheredProcess): Promise<Qmp> {
    const qmp = new Qmp();
    qmp.socket = await LineSocket.connect(path, owner, (line) => qmp.take(line));
    void qmp.socket.ended.then(() => qmp.end());
    await qmp.execute('qmp_capabilities');
    return qmp;
  }

  /** Runs a command of the monitor; returns its result, throws its error. */
  async execute(command: string, args: Record<string, unknown> = {}): Promise<unknown> {
    const id = this.nextId++;
    const reply = await within(
      REPLY_LIMIT_MS,
      `the reply to ${command}`,
      new Promise<Reply>((resolve) => {
        if (this.ended) return resolve({ error: { class: 'Ended', desc: 'QEMU has ended' } });
        this.waiting.set(id, resolve);
        this.socket.send(JSON.stringify({ execute: command, arguments: args, id }));
      }),
    );
    if (reply.error !== undefined) throw new Error(`QMP ${command}: ${reply.error.desc}`);
    return reply.return;
  }

  /** Waits for an event that `matches`, one of the past included. */
  async event(
    name: string,
    matches: (event: QmpEvent) => boolean = () => true,
    limitMs = REPLY_LIMIT_MS,
  ): Promise<QmpEvent> {
    const find = () => this.events.find((event) => event.event === name && matches(event));
    let watcher = () => {};
    try {
      return await within(
        limitMs,
        `the event ${name}`,
        new Promise<QmpEvent>((resolve, reject) => {
          watcher = () => {
            const event = find();
            if (event !== undefined) resolve(event);
            else if (this.ended) reject(new Error(`QEMU ended without the event ${name}`));
          };
          this.watchers.add(watcher);
          watcher();
        }),
      );
    } finally {
      this.watchers.delete(watcher);
    }
  }

  close(): void {
    this.socket.close();
  }

  private take(line: string): void {
    const message = JSON.parse(line) as Reply & Partial<QmpEvent> & { id?: number };
    if (message.id !== undefined) {
      this.waiting.get(message.id)?.(message);
      this.waiting.delete(message.id);
    } else if (message.event !== undefined) {
      this.events.push(message as QmpEvent);
      this.tell();
    }
  }

  private end(): void {
    this.ended = true;
    for (const resolve of this.waiting.values()) {
      resolve({ error: { class: 'Ended', desc: 'QEMU has ended' } });
    }
    this.waiting.clear();
    this.tell();
  }

  private tell(): void {
    for (const watcher of [...this.watchers]) watcher();
  }
}

/** Settles as `promise` does; rejects when that takes longer than `limitMs`. */
export async function within<T>(limitMs: number, what: string, promise: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error(`no ${what} within ${limitMs} ms`)), limitMs);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
