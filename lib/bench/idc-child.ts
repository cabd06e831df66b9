// The other process of `bench idc`: joins the hub, and answers in the way that it is told to by
// messages of its parent, until its parent is gone.

import { once } from 'node:events';
import { setImmediate as turn } from 'node:timers/promises';
import { joinDomain, type Channel, type Domain, type RecordChannel } from '../idc/index.js';
import { native } from '../native.js';
import { Answerer, sumOf } from './idc-records.js';
import type { ChildOrder, ChildAnswer } from './idc-crew.js';

const SLICE_SECONDS = 0.02;
/** Looks at the friendly channel per slice. */
const LOOKS_PER_SLICE = 20_000;
/** A sleep in a thread is cut into parts, so that the parent's end is seen. */
const PARK_US = 200_000;
const STREAM_US = 5_000_000;
/** An answer over the socket: the sum. */
const ANSWER_BYTES = 4;

class Child {
  private readonly domain: Domain;
  private readonly records: RecordChannel;
  private readonly loans: Channel;
  private readonly answerer: Answerer;

  constructor(domain: Domain, records: RecordChannel, loans: Channel, answerer: Answerer) {
    this.domain = domain;
    this.records = records;
    this.loans = loans;
    this.answerer = answerer;
  }

  static async join(hub: string, parent: string): Promise<Child> {
    const domain = await joinDomain(hub, { name: 'bench-answerer' });
    const { records, link } = await domain.connectRaw(parent, 'records', { size: 4096 });
    const loans = await domain.connect(parent, 'loans');
    const { words, read } = native.tscClock();
    const clock = { words: new Uint32Array(words), read, hertz: native.tscHertz() };
    return new Child(domain, records, loans, new Answerer(records, domain, link, clock));
  }

  async obey(order: ChildOrder): Promise<void> {
    switch (order.phase) {
      case 'spin':
        while (this.answerer.spin(SLICE_SECONDS) && !this.records.over) await turn();
        return;
      case 'wait':
        while (!this.records.over) {
          if (!this.answerer.answer(await this.records.wait())) return;
        }
        return;
      case 'park':
        while (!this.records.over) {
          if (!this.answerer.answer(this.records.park(PARK_US))) return;
        }
        return;
      case 'loans':
        while (this.answerLoans() && !this.loans.records.over) await turn();
        return;
      case 'socket':
        answerSocket(order.path, order.bytes);
        return;
      case 'cpu':
        return;
    }
  }

  close(): void {
    this.domain.close();
  }

  /** Sends back what comes; false after the last, which says so. */
  private answerLoans(): boolean {
    for (let look = 0; look < LOOKS_PER_SLICE; look++) {
      const message = this.loans.tryReceive();
      if (message === null) continue;
      const isLast = message.aux === 1;
      while (!this.loans.trySend(message)) continue;
      if (isLast) return false;
    }
    return true;
  }
}

/** Takes messages of `bytes` whole, adds them up and answers, until the stream ends. */
function answerSocket(path: string, bytes: number): void {
  const fd = native.streamConnect(path);
  try {
    const data = new Uint8Array(bytes);
    const words = new Uint32Array(data.buffer);
    const answer = new Uint32Array(1);
    const answerBytes = new Uint8Array(answer.buffer, 0, ANSWER_BYTES);
    const fds = new Int32Array(8);
    while (native.streamReceive(fd, data, fds, STREAM_US) === bytes) {
      answer[0] = sumOf(words, 0, words.length);
      native.streamSend(fd, answerBytes, [], STREAM_US);
    }
  } finally {
    native.fileClose(fd);
  }
}

function tell(answer: ChildAnswer): Promise<void> {
  return new Promise((resolve) => {
    // A parent that is gone is told by 'disconnect'.
    process.send?.(answer, undefined, undefined, () => resolve());
  });
}

async function main(hub: string, parent: string): Promise<void> {
  const child = await Child.join(hub, parent);
  const ended = once(process, 'disconnect').then(() => null);
  let order: Promise<ChildOrder | null> = nextOrder();
  await tell({ ready: 'join', cpuUs: 0 });
  for (;;) {
    const next = await Promise.race([order, ended]);
    if (next === null) break;
    order = nextOrder();
    const { user, system } = process.cpuUsage();
    await tell({ ready: next.phase, cpuUs: user + system });
    await child.obey(next);
  }
  child.close();
}

/** Orders in turn; words that are to be added up are answered at once. */
function nextOrder(): Promise<ChildOrder> {
  return new Promise((resolve) => {
    const onMessage = (message: ChildOrder | Uint32Array): void => {
      if (message instanceof Uint32Array) {
        process.send?.(sumOf(message, 0, message.length));
        return;
      }
      process.off('message', onMessage);
      resolve(message);
    };
    process.on('message', onMessage);
  });
}

const [hub = '', parent = '', cpu = ''] = process.argv.slice(2);
if (cpu !== '') native.setCpuAffinity([Number(cpu)]);
await main(hub, parent);
