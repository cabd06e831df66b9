// A domain in a guest, by regions: `region-channels.js DOMAIN PCI=DOMAIN…`. Domain 3 sends buffers
// to domain 2, which passes them on, unread, to the host.

import { joinRegions, type Domain } from '../../../lib/idc/index.js';
import { mapIvshmem } from '../../../lib/pci/index.js';
import { hear, report, say } from '../inside.js';
import { addressOf } from '../region-talk.js';
import { BUFFER_BYTES, fillBuffer } from '../region-buffers.js';

const [, , first = '', ...places] = process.argv;
const number = Number(first);

const domain = await joinRegions({
  name: `guest${number}`,
  domain: number,
  async map() {
    const mapped = await Promise.all(
      places.map(async (place) => {
        const [pci = '', owner = ''] = place.split('=');
        const writable = Number(owner) === number;
        return mapIvshmem(pci, { address: addressOf(Number(owner)), writable });
      }),
    );
    const own = mapped.find(({ writable }) => writable)!;
    return { own, peers: mapped.filter((segment) => segment !== own) };
  },
});

/** Passes everything on; ends with its source. */
async function pass(here: Domain): Promise<void> {
  const out = await here.connect('host', 'sink', { timeoutMs: 60_000 });
  const passed = new Promise<number>((resolve) => {
    here.listen('pipe', async (channel) => {
      let count = 0;
      for await (const message of channel) {
        await out.send(message, { aux: message.aux });
        count++;
      }
      channel.close();
      resolve(count);
    });
  });
  say('ready');
  report('passed', await passed);
  out.close();
}

async function feed(here: Domain, count: number): Promise<void> {
  const pipe = await here.connect('guest2', 'pipe', { timeoutMs: 60_000 });
  for (let i = 0; i < count; i++) {
    const buffer = here.alloc(BUFFER_BYTES);
    fillBuffer(buffer.u32, i);
    await pipe.send(buffer, { aux: i });
  }
  while (here.loans().lent.length > 0) await new Promise((resolve) => setTimeout(resolve, 20));
  report('strays', here.desk.strays);
  pipe.close();
}

if (number === 2) await pass(domain);
else await feed(domain, Number(await hear()));
say('done');
await hear(); // the others are done, too
domain.close();
