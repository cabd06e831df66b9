// Three processes that pass buffers on without copying them: node examples/domains.mjs [COUNT]
//
// The producer (this process, which is the hub, too) fills buffers of its own memory. `middle` sees
// each and sends it on; `consumer` reads the bytes where they lie, in the producer's memory, and
// releases. The buffer comes home when the last who had it lets go.

import { fork } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Hub, joinDomain } from 'penstock';

const BYTES = 65536;
const LAST = 1;
const [role = '1000', path] = process.argv.slice(2);

if (role === 'middle') await middle();
else if (role === 'consumer') await consumer();
else await producer(Number(role));

async function producer(count) {
  const folder = mkdtempSync(join(tmpdir(), 'penstock-domains-'));
  const hub = Hub.listen(join(folder, 'hub'));
  const domain = await joinDomain(hub.path, { name: 'producer' });
  const children = ['consumer', 'middle'].map((name) => {
    return fork(fileURLToPath(import.meta.url), [name, hub.path]);
  });
  const ends = children.map((child) => once(child, 'exit'));
  try {
    const channel = await domain.connect('middle', 'frames', { timeoutMs: 20_000 });
    for (let i = 0; i < count; i++) {
      const buffer = domain.alloc(BYTES); // shared: the others map it, read-only
      buffer.u32.fill(i);
      // It moves. Waits when the ring is full.
      await channel.send(buffer, { aux: i, aux2: i === count - 1 ? LAST : 0 });
    }
    const last = await channel.receive(); // what the consumer found comes back the same way
    const [frames, wrong] = last.u32;
    last.release();
    channel.close();
    await Promise.all(ends);
    const lent = domain.loans().lent.length;
    console.log(
      `${frames} buffers of ${BYTES} bytes by 2 hops, ${wrong} wrong, ${lent} still lent`,
    );
    if (frames !== count || wrong > 0) process.exitCode = 1;
  } finally {
    for (const child of children) child.kill();
    domain.close();
    hub.close();
    rmSync(folder, { recursive: true });
  }
}

/** Sends on what comes, both ways; it looks at two numbers of each message, and at no byte. */
async function middle() {
  const domain = await joinDomain(path, { name: 'middle' });
  const asked = domain.connect('consumer', 'frames', { timeoutMs: 20_000 });
  // At once: whoever asks for a port that nobody listens on is refused.
  domain.listen('frames', async (from) => {
    const to = await asked;
    void passOn(to, from);
    await passOn(from, to); // until the producer closes
    to.close();
    domain.close();
  });
}

async function passOn(from, to) {
  for await (const message of from) {
    const { aux, aux2 } = message;
    await to.send(message, { aux, aux2 });
  }
}

/** Reads every word of each buffer, and answers the last one with what it found. */
async function consumer() {
  const domain = await joinDomain(path, { name: 'consumer' });
  domain.listen('frames', async (channel) => {
    const result = domain.alloc(8);
    result.u32.fill(0);
    for await (const message of channel) {
      const { u32, aux, aux2 } = message;
      for (let i = 0; i < u32.length; i++) if (u32[i] !== aux) result.u32[1]++;
      message.release();
      result.u32[0]++;
      if (aux2 !== LAST) continue;
      await channel.send(result);
      break;
    }
    while ((await channel.receive()) !== null) continue; // the others close first
    domain.close();
  });
}
