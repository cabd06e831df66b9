// A process of the chain: makes buffers (a), passes them on (b), or verifies them (c).
//
//   node idc-chain-actor.js HUB ROLE SEED

import { joinDomain, type Channel, type Domain } from '../../lib/idc/index.js';
import { statusWords, StatusWord } from '../../lib/memory/status.js';
import { native } from '../../lib/native.js';
import { sleep } from './harness.js';

const BYTES = 65536;
/** Words that are looked at in each buffer. */
const STRIDE = 1024;
const HASH_EVERY = 64;

const [path = '', role = '', seedText = ''] = process.argv.slice(2);
const seed = Number(seedText);
const sum = new Uint32Array(4);
let stopping = false;
let count = 0;
let hashed = 0;

function wordOf(sequence: number): number {
  return Math.imul(sequence ^ seed, 0x9e3779b1) >>> 0;
}

async function make(domain: Domain): Promise<void> {
  const channel = await domain.connect('b', 'in', { size: 256 });
  while (!stopping) {
    const buffer = domain.alloc(BYTES);
    const { u32, address } = buffer;
    u32.fill(wordOf(count));
    u32[0] = count;
    u32[1] = address >>> 0;
    u32[2] = Math.floor(address / 2 ** 32);
    let hash = 0;
    if (count % HASH_EVERY === 0) {
      u32[3 + (count % 16000)] = count;
      native.xxh3(buffer.u8, sum);
      hash = sum[0]!;
    }
    await channel.send(buffer, { aux: count, aux2: hash });
    count++;
  }
  channel.close();
}

async function passOn(from: Channel, domain: Domain): Promise<void> {
  const to = await domain.connect('c', 'in', { size: 256 });
  for await (const message of from) {
    const { aux, aux2 } = message;
    await to.send(message, { aux, aux2 });
    count++;
  }
  to.close();
}

async function verify(from: Channel): Promise<void> {
  for await (const message of from) {
    const { u32, aux, aux2, body } = message;
    const word = wordOf(count);
    let good = aux === count && u32[0] === count && body.bytes === BYTES;
    good &&= u32[1]! + u32[2]! * 2 ** 32 === body.address;
    if (count % HASH_EVERY === 0) {
      native.xxh3(message.u8 as unknown as Uint8Array, sum);
      good &&= sum[0] === aux2;
      hashed++;
    } else {
      for (let at = STRIDE; at < BYTES / 4; at += STRIDE) good &&= u32[at] === word;
      good &&= u32[3] === word && u32[BYTES / 4 - 1] === word;
    }
    if (!good) throw new Error(`buffer ${count} is wrong: ${aux}, ${u32[0]}, ${body.address}`);
    message.release();
    count++;
  }
}

async function main(): Promise<void> {
  const domain = await joinDomain(path, { name: role });
  const copiesBefore = statusWords()[StatusWord.copies]!;
  const from = new Promise<Channel>((resolve) => {
    if (role !== 'a') domain.listen('in', resolve);
  });
  process.on('message', ({ kind }: { kind: string }) => {
    if (kind === 'stop') stopping = true;
  });
  process.on('disconnect', () => process.exit());
  setInterval(() => process.send!({ kind: 'count', count }), 100).unref();
  process.send!({ kind: 'ready' });
  if (role === 'a') await make(domain);
  else if (role === 'b') await passOn(await from, domain);
  else await verify(await from);
  const lent = (): number => domain.loans().lent.reduce((all, { holds }) => all + holds, 0);
  for (let i = 0; i < 500 && lent() > 0; i++) await sleep(10);
  process.send!({
    kind: 'done',
    role,
    count,
    hashed,
    copies: statusWords()[StatusWord.copies]! - copiesBefore,
    strays: domain.desk.strays,
    lent: lent(),
    held: domain.desk.heldTotal,
  });
}

await main();
