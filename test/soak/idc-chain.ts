// Chain: three processes pass verified buffers of 64 KiB from hand to hand, A → B → C.
//
// What must hold: C sees at each buffer's address, which is A's, what A wrote there; in order and
// each once; nothing is copied by native code; and in the end all is home.

import { join } from 'node:path';
import { Hub } from '../../lib/idc/index.js';
import { check, scratchFolder, sleep, type Random, type Soak, type SoakRun } from './harness.js';
import { IdcProcess } from './idc-process.js';

const ACTOR = new URL('./idc-chain-actor.js', import.meta.url);
const ROUND_MS = 200;

class ChainRun implements SoakRun {
  private readonly hub: Hub;
  private readonly actors: IdcProcess[] = [];
  private startedAt = 0;
  private seen = 0;

  private constructor(hub: Hub) {
    this.hub = hub;
  }

  static async start(random: Random): Promise<ChainRun> {
    const path = join(scratchFolder(), 'hub');
    const run = new ChainRun(Hub.listen(path));
    const seed = String(random.u32());
    for (const role of ['c', 'b', 'a']) {
      const actor = new IdcProcess(role, ACTOR, [path, role, seed]);
      run.actors.push(actor);
      await actor.take('ready');
    }
    return run;
  }

  async round(): Promise<number> {
    await sleep(ROUND_MS);
    for (const actor of this.actors) actor.assertAlive();
    const count = Number(this.actors[0]!.reports.get('count')?.['count'] ?? this.seen);
    if (this.startedAt === 0) this.startedAt = performance.now();
    const more = count - this.seen;
    this.seen = count;
    return more;
  }

  async finish(): Promise<void> {
    const [c, b, a] = this.actors as [IdcProcess, IdcProcess, IdcProcess];
    try {
      a.tell({ kind: 'stop' });
      const done = [];
      for (const actor of [a, b, c]) done.push(await actor.take('done'));
      const [first, middle, last] = done;
      const seconds = (performance.now() - this.startedAt) / 1000;
      const rate = Number(last!['count']) / seconds;
      console.log(
        `idc-chain: ${last!['count']} buffers, ${Math.round(rate)} a second, ` +
          `${((rate * 65536) / 2 ** 30).toFixed(1)} GiB/s, ${last!['hashed']} hashed whole`,
      );
      check(first!['count'] === last!['count'], 'not all that was sent arrived');
      check(first!['count'] === middle!['count'], 'not all that was sent went through the middle');
      for (const report of done) {
        check(report['copies'] === 0, `${report['role']} copied ${report['copies']} times`);
        check(report['strays'] === 0, `${report['role']} saw ${report['strays']} strays`);
        check(report['lent'] === 0, `${report['role']} misses ${report['lent']} buffers`);
        check(report['held'] === 0, `${report['role']} holds ${report['held']} buffers`);
      }
    } finally {
      for (const actor of this.actors) await actor.kill();
      this.hub.close();
    }
  }
}

export const idcChainSoak: Soak = {
  full: 1_000_000,
  unit: 'buffers',
  start: (random) => ChainRun.start(random),
};
