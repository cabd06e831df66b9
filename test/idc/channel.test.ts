// Channels between processes: opened, used, waited on, and ended in every way.

import { describe, expect, it } from 'vitest';
import { Actor, startAll, takeDescriptors } from './actors.js';

/** `b` answers on 'echo' with what it got, and keeps what comes on 'keep'. */
async function pair(): Promise<{ a: Actor; b: Actor }> {
  const { a, b } = await startAll('a', 'b');
  await b.run((stage) => {
    stage.domain.listen('echo', (channel) => {
      void (async () => {
        for await (const message of channel) {
          try {
            if (message.tag !== 0) await message.reply(message, { aux: message.aux + 1 });
            else await channel.send(message);
          } finally {
            message[Symbol.dispose]();
          }
        }
        stage.notes['ended'] = true;
      })().catch((error: { code: string }) => {
        channel.close();
        stage.notes['failed'] = error.code;
      });
    });
    stage.domain.listen('keep', (channel) => void (stage.channels['keep'] = channel));
  });
  await a.run(async (stage) => {
    stage.channels['echo'] = await stage.domain.connect('b', 'echo');
    stage.channels['keep'] = await stage.domain.connect('b', 'keep', { size: 8, meta: 'é"\n' });
  });
  return { a, b };
}

describe('a channel', () => {
  it('is asked for on a port, and told what both say', async () => {
    const { a, b } = await startAll('a', 'b');
    await b.run((stage) => {
      stage.domain.listenRaw('raw', (incoming) => {
        const { meta, size, peer, port } = incoming;
        if (meta === 'no') incoming.refuse('NOT_TODAY', 'come again', 'tomorrow');
        else if (meta === 'odd') incoming.refuse('not a code!', 'why');
        else if (meta === 'never') stage.notes['incoming'] = incoming;
        else incoming.accept(`${peer.name} ${port} ${size} ${meta}`);
      });
    });
    const seen = await a.run(async (stage) => {
      const connect = (meta: string, more: object = {}): Promise<string> =>
        stage.domain.connectRaw('b', 'raw', { size: 16, meta, ...more }).then(
          (made) => made.meta,
          (error: { code: string; message: string }) => `${error.code}: ${error.message}`,
        );
      return [
        await connect('yes'),
        await connect('no'),
        await connect('odd'),
        await stage.domain.connect('b', 'none').catch((error: { code: string }) => error.code),
        await connect('never', { timeoutMs: 50 }),
        await connect('x'.repeat(5000)).catch((error: Error) => error.message),
        await connect('yes', { size: 3 }).catch((error: Error) => error.name),
        stage.domain.memory.taken,
      ];
    });
    expect(seen.slice(0, 4)).toEqual([
      'a raw 16 yes',
      'NOT_TODAY: come again',
      'REFUSED: why',
      'NO_SUCH_PORT',
    ]);
    expect(seen[4]).toMatch(/^TIMED_OUT/);
    expect(seen[5]).toContain('4096');
    // The loan ring, the raw channel, and the one that nobody has answered yet.
    expect(seen[7]).toBe(3);
    // An answer that comes too late ends what it opens.
    await b.run((stage) => {
      const incoming = stage.notes['incoming'] as { accept: () => { records: unknown } };
      const { records } = incoming.accept();
      stage.notes['records'] = records;
      try {
        incoming.accept();
      } catch (error) {
        stage.notes['twice'] = (error as Error).message;
      }
    });
    await b.run(async (stage) => {
      const records = stage.notes['records'] as { ended: boolean; close: () => void };
      await stage.until('the end', () => records.ended);
      records.close();
    });
    expect(await b.run((stage) => stage.notes['twice'])).toContain('once');
    await a.run((stage) => stage.until('the half is home', () => stage.domain.memory.taken === 2));
  });

  it('is not had without a descriptor; nothing is left of the attempt', async () => {
    const { a, b } = await startAll('a', 'b');
    await b.run(({ domain }) => domain.listen('data', () => {}));
    const attempt = (): Promise<[string, number]> =>
      a.run(async ({ domain }) => {
        const before = domain.memory.taken;
        const code = await domain.connect('b', 'data').then(
          (channel) => (channel.close(), 'connected'),
          (error: unknown) => (error as { code: string }).code,
        );
        return [code, domain.memory.taken - before];
      });
    // Their link comes with descriptors of its own: it is to be there before.
    expect((await attempt())[0]).toBe('connected');
    // A channel's wake is two: of one of them there is none left.
    for (const free of [0, 1]) {
      const giveBack = await takeDescriptors(a, free);
      expect(await attempt()).toEqual(['TOO_MANY_FILES', 0]);
      await giveBack();
    }
    expect((await attempt())[0]).toBe('connected');
    // Where none is left for the one that comes, the kernel drops it: nobody knows whose it was.
    const giveBack = await takeDescriptors(b, 0);
    expect((await attempt())[0]).toBe('PEER_GONE');
    const code = await b.run(async ({ domain, until }) => {
      const [link] = domain.links.values();
      await until('the end', () => link!.error !== null);
      return link!.error!.code;
    });
    expect(code).toBe('TOO_MANY_FILES');
    await giveBack();
  });

  it('carries messages and answers, and moves what it carries', async () => {
    const { a } = await pair();
    const seen = await a.run(async (stage) => {
      const { echo } = stage.channels;
      const buffer = stage.domain.alloc(1000);
      buffer.u32.fill(77);
      const { address, u8 } = buffer;
      const asked = echo!.request(buffer, { aux: 0xffff_fffe });
      const used = (() => {
        try {
          return buffer.u8.length;
        } catch (error) {
          return (error as { code: string }).code;
        }
      })();
      const answer = await asked;
      const same = answer.body.address === address && answer.u32[0] === 77;
      const { aux, bytes } = answer;
      answer.release();
      const after = [() => answer.u8.length, () => answer.release()].map((use) => {
        try {
          return use();
        } catch (error) {
          return (error as { code: string }).code;
        }
      });
      return { used, same, aux, bytes, after, length: u8.length };
    });
    expect(seen).toEqual({
      used: 'USE_AFTER_SEND',
      same: true,
      aux: 0xffff_ffff,
      bytes: 1000,
      after: ['USE_AFTER_RELEASE', 'USE_AFTER_RELEASE'],
      length: 1000,
    });
  });

  it('keeps the order of messages, and pairs answers with requests', async () => {
    const { a } = await pair();
    const good = await a.run(async (stage) => {
      const { echo } = stage.channels;
      const asks = [];
      for (let i = 0; i < 3000; i++) {
        const buffer = stage.domain.alloc(64);
        buffer.u32[0] = i;
        if (i % 3 === 0) {
          asks.push(
            echo!.request(buffer, { aux: i }).then((answer) => {
              const right = answer.u32[0] === i && answer.aux === i + 1;
              answer.release();
              return right;
            }),
          );
        } else await echo!.send(buffer, { aux: i });
      }
      let order = true;
      for (let i = 0; i < 3000; i++) {
        if (i % 3 === 0) continue;
        const message = (await echo!.receive())!;
        order &&= message.u32[0] === i;
        message.release();
      }
      return [order, (await Promise.all(asks)).every((right) => right)];
    });
    expect(good).toEqual([true, true]);
    await a.run((stage) => stage.until('all is home', () => stage.domain.memory.taken === 3));
  });

  it('refuses private memory and closed channels, and takes back nothing', async () => {
    const { a } = await pair();
    const codes = await a.run(async (stage) => {
      const { echo, keep } = stage.channels;
      const codes: unknown[] = [];
      const note = (work: () => unknown): void => {
        try {
          codes.push(work());
        } catch (error) {
          codes.push((error as { code?: string }).code ?? (error as Error).name);
        }
      };
      const buffer = stage.domain.alloc(64);
      stage.domain.memory.freeAddress(buffer.address);
      note(() => echo!.trySend(buffer));
      keep!.close();
      const live = stage.domain.alloc(64);
      note(() => keep!.trySend(live));
      note(() => live.u8.length);
      live.free();
      return codes;
    });
    expect(codes).toEqual(['USE_AFTER_FREE', 'CHANNEL_CLOSED', 64]);
  });

  it('is full when nobody reads: trySend says so, send waits, request times out', async () => {
    const { a, b } = await pair();
    const full = await a.run(async (stage) => {
      const { keep } = stage.channels;
      let sent = 0;
      for (;;) {
        const buffer = stage.domain.alloc(64);
        buffer.u32[0] = sent;
        if (keep!.trySend(buffer)) {
          sent++;
          continue;
        }
        buffer.u32[0] = 1000;
        const late = await keep!
          .request(buffer, { timeoutMs: 30 })
          .catch((error: { code: string }) => error.code);
        stage.notes['waiting'] = keep!.send(buffer).then(() => 'sent');
        return [sent, late];
      }
    });
    expect(full).toEqual([8, 'TIMED_OUT']);
    const got = await b.run(async (stage) => {
      const { keep } = stage.channels;
      const words = [];
      for (let i = 0; i < 9; i++) {
        const message = (await keep!.receive())!;
        words.push(message.u32[0]);
        message.release();
      }
      return words;
    });
    expect(got).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 1000]);
    expect(await a.run((stage) => stage.notes['waiting'])).toBe('sent');
  });

  it('takes no more than a loan ring keeps, and gives all of it back', async () => {
    const { a, b } = await startAll('a', 'b');
    await b.run((stage) => {
      stage.domain.listen('keep', (channel) => {
        void (async () => {
          for await (const message of channel) stage.messages.push(message);
        })();
      });
    });
    const sent = await a.run(async (stage) => {
      const channel = await stage.domain.connect('b', 'keep', { size: 32768 });
      let sent = 0;
      while (channel.trySend(stage.domain.alloc(64))) sent++;
      return sent;
    });
    expect(sent).toBe(16384);
    await b.run(async (stage, count) => {
      await stage.until('all messages', () => stage.messages.length === count);
      // More than the loan ring holds at once, and then nothing more is done here.
      for (const message of stage.messages.splice(0)) message.release();
    }, sent);
    await a.run((stage) =>
      stage.until('all is home', () => stage.domain.loans().lent.length === 0),
    );
  });
});

describe('an end', () => {
  it('in order comes after all that was sent', async () => {
    const { a, b } = await pair();
    await a.run(async (stage) => {
      const { keep } = stage.channels;
      for (let i = 0; i < 5; i++) await keep!.send(stage.domain.alloc(64));
      keep!.close();
    });
    const seen = await b.run(async (stage) => {
      const { keep } = stage.channels;
      let count = 0;
      for await (const message of keep!) {
        count++;
        message.release();
      }
      const again = await keep!.receive();
      return [count, again, keep!.records.isClosed];
    });
    expect(seen).toEqual([5, null, true]);
    await a.run((stage) => stage.until('all is home', () => stage.domain.memory.taken === 2));
    await b.run((stage) => stage.until('all is home', () => stage.domain.memory.taken === 2));
  });

  it('on both sides at once loses no loan', async () => {
    const { a, b } = await pair();
    b.stop();
    await a.run(async (stage) => {
      const { keep, echo } = stage.channels;
      for (let i = 0; i < 8; i++) await keep!.send(stage.domain.alloc(64));
      for (let i = 0; i < 20; i++) await echo!.send(stage.domain.alloc(64));
      stage.notes['asked'] = echo!
        .request(stage.domain.alloc(64))
        .catch((error: { code: string }) => error.code);
      await stage.sleep(20);
      keep!.close();
      echo!.close();
    });
    b.goOn();
    expect(await a.run((stage) => stage.notes['asked'])).toBe('CHANNEL_CLOSED');
    await b.run(async (stage) => {
      stage.channels['keep']!.close();
      await stage.until('the end', () => stage.notes['ended'] === true || 'failed' in stage.notes);
    });
    await a.run((stage) => stage.until('all is home', () => stage.domain.memory.taken === 1));
    await b.run((stage) => stage.until('all is home', () => stage.domain.memory.taken === 1));
  });

  it('of who asked comes to the asker as an error', async () => {
    const { a, b } = await pair();
    const asked = a.run((stage) =>
      stage.channels['keep']!.request(stage.domain.alloc(64)).catch(
        (error: { code: string }) => error.code,
      ),
    );
    await b.run(async (stage) => {
      const message = await stage.channels['keep']!.receive();
      message!.release();
      stage.channels['keep']!.close();
    });
    expect(await asked).toBe('CHANNEL_CLOSED');
    const dying = a.run((stage) => {
      stage.channels['echo']!.records.wait().catch(() => {});
      return stage.domain
        .connect('b', 'keep')
        .then((channel) => channel.request(stage.domain.alloc(64)))
        .catch((error: { code: string }) => error.code);
    });
    await a.run((stage) => stage.sleep(100));
    await b.kill();
    expect(await dying).toBe('PEER_GONE');
  });

  it('by death comes after what was sent, too', async () => {
    const { a, b } = await pair();
    await a.run(async (stage) => {
      for (let i = 0; i < 5; i++) await stage.channels['keep']!.send(stage.domain.alloc(64));
    });
    await b.run((stage) => stage.until('it', () => stage.channels['keep']!.records.ready));
    await a.kill();
    const seen = await b.run(async (stage) => {
      const { keep } = stage.channels;
      await stage.until('the end', () => stage.domain.links.size === 0);
      const words = [];
      for (;;) {
        try {
          const message = await keep!.receive();
          words.push(message!.bytes, message!.u8.length);
          message!.release();
        } catch (error) {
          words.push((error as { code: string }).code);
          break;
        }
      }
      return words;
    });
    expect(seen).toEqual([64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 'PEER_GONE']);
    expect(await b.run((stage) => stage.notes['failed'])).toBe('PEER_GONE');
  });

  it('in order before a death stays in order', async () => {
    const { a, b } = await pair();
    await a.run(async (stage) => {
      await stage.channels['keep']!.send(stage.domain.alloc(64));
      stage.channels['keep']!.close();
    });
    await a.kill();
    const seen = await b.run(async (stage) => {
      await stage.until('the end', () => stage.domain.links.size === 0);
      let count = 0;
      for await (const message of stage.channels['keep']!) {
        count++;
        message.release();
      }
      return count;
    });
    expect(seen).toBe(1);
  });
});

describe('who waits', () => {
  it('sleeps, and costs nothing', async () => {
    const { b } = await pair();
    const used = await b.run(async (stage) => {
      const waiting = stage.channels['keep']!.receive();
      waiting.catch(() => {});
      await stage.sleep(200);
      const before = process.cpuUsage();
      await stage.sleep(1000);
      const { user, system } = process.cpuUsage(before);
      return (user + system) / 1000;
    });
    // Of a second; a loop that spins takes most of it.
    expect(used).toBeLessThan(200);
  });

  it('does not stop a process from ending that has nothing else to do', async () => {
    // A channel and its links, without a listener: that would be something to do.
    const { a, b } = await pair();
    await b.run((stage) => {
      for (const port of ['echo', 'keep']) stage.domain.listenRaw(port, null);
    });
    for (const actor of [a, b]) {
      await actor.run(() => {
        process.removeAllListeners('message');
        setTimeout(() => process.disconnect(), 10);
        process.removeAllListeners('disconnect');
      });
    }
    await expect
      .poll(() => [a.child.exitCode, b.child.exitCode], { timeout: 5000 })
      .toEqual([0, 0]);
  });

  it('may be a thread that joined, and parks', async () => {
    const { path, a } = await startAll('a');
    await a.run((stage) => {
      stage.domain.listenRaw('raw', (incoming) => {
        const { records } = incoming.accept();
        stage.notes['records'] = records;
        void (async () => {
          for (;;) {
            const count = await records.wait();
            if (count === 0) return;
            const at = (records.tail & records.mask) * 8;
            records.reserve(1);
            records.sq[at] = 5;
            records.sq[at + 1] = records.rq[1]! + 1;
            records.submit();
          }
        })();
      });
    });
    const other = await Actor.start();
    const answers = await other.run(
      async ({ Worker }, hub, lib) => {
        const code = `
          const { parentPort, workerData } = require('node:worker_threads');
          (async () => {
            const { joinDomain } = await import(workerData.lib);
            const domain = await joinDomain(workerData.hub, { name: 'thread' });
            const { records } = await domain.connectRaw('a', 'raw', { size: 8 });
            const answers = [];
            for (let i = 0; i < 200; i++) {
              const at = (records.tail & records.mask) * 8;
              while (records.reserve(1) === 0);
              records.sq[at] = 4;
              records.sq[at + 1] = i;
              records.submit();
              while (records.park(1_000_000) === 0);
              answers.push(records.rq[1]);
              if (i % 50 === 0) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 20);
            }
            const none = records.park(20_000);
            records.close();
            domain.close();
            parentPort.postMessage([none, ...answers]);
          })();`;
        const worker = new Worker(code, { eval: true, workerData: { hub, lib } });
        return new Promise<number[]>((resolve, reject) => {
          worker.once('message', resolve);
          worker.once('error', reject);
        });
      },
      path,
      new URL('../../dist/lib/idc/index.js', import.meta.url).href,
    );
    expect(answers).toEqual([0, ...Array.from({ length: 200 }, (_, i) => i + 1)]);
  });
});

describe('many channels', () => {
  it('come in by one, in turn, and the idle ones cost nothing', async () => {
    const { a, b, c } = await startAll('a', 'b', 'c');
    await a.run((stage) => {
      const fan = new stage.idc.FanIn();
      stage.notes['fan'] = fan;
      stage.notes['got'] = { b: [], c: [], idle: [] };
      stage.domain.listen('in', (channel) => fan.add(channel));
      stage.notes['done'] = (async () => {
        await stage.until('somebody', () => fan.size > 0);
        for await (const message of fan) {
          const got = stage.notes['got'] as Record<string, number[]>;
          got[message.channel.peer.name]!.push(message.u32[0]!);
          message.release();
        }
      })();
    });
    await c.run(async (stage) => {
      stage.channels['idle'] = await stage.domain.connect('a', 'in');
    });
    const feed = (who: Actor): Promise<void> =>
      who.run(async (stage) => {
        const channel = await stage.domain.connect('a', 'in');
        for (let i = 0; i < 500; i++) {
          const buffer = stage.domain.alloc(64);
          buffer.u32[0] = i;
          await channel.send(buffer);
        }
        channel.close();
      });
    await Promise.all([feed(b), feed(c)]);
    await c.run((stage) => stage.channels['idle']!.close());
    const got = await a.run(async (stage) => {
      await stage.notes['done'];
      return stage.notes['got'] as Record<string, number[]>;
    });
    const all = Array.from({ length: 500 }, (_, i) => i);
    expect(got).toEqual({ b: all, c: all, idle: [] });
  });

  it('go out by one, to whoever has most room', async () => {
    const { a, b, c } = await startAll('a', 'b', 'c');
    for (const who of [b, c]) {
      await who.run((stage) => {
        stage.domain.listen('out', (channel) => void (stage.channels['out'] = channel));
      });
    }
    const seen = await a.run(async (stage) => {
      const connect = (name: string): Promise<never> =>
        stage.domain.connect(name, 'out', { size: 4 }) as Promise<never>;
      const fan = new stage.idc.FanOut([await connect('b'), await connect('c')]);
      stage.notes['fan'] = fan;
      const to = [];
      for (;;) {
        const buffer = stage.domain.alloc(64);
        const channel = fan.trySend(buffer);
        if (channel === null) {
          buffer.free();
          return to;
        }
        to.push(channel.peer.name);
      }
    });
    expect(seen).toEqual(['b', 'c', 'b', 'c', 'b', 'c', 'b', 'c']);
    await b.kill();
    await c.run(async (stage) => {
      await stage.channels['out']!.receive();
      stage.channels['out']!.close();
    });
    await a.run((stage) =>
      stage.until('nobody is left', () => (stage.notes['fan'] as { size: number }).size === 0),
    );
  });
});
