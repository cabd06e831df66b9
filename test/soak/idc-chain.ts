// A chain of three processes passes buffers of 64 KiB: verified, in order, never copied, at the
// address at which they were filled.

import { check, sleep, type Soak, type SoakRun } from './harness.js';
import { Family, MEMBERS } from './idc-family.js';

const ROUND = 10_000;

class ChainRun implements SoakRun {
  private passed = 0;
  private seconds = 0;

  async round(): Promise<number> {
    const family = new Family(ROUND);
    try {
      await family.start('hub');
      for (const member of ['consumer', 'middle', 'producer'] as const) await family.start(member);
      const start = performance.now();
      for (;;) {
        const { received } = await family.ask('consumer', 'report');
        if (received === ROUND) break;
        await sleep(20);
      }
      this.seconds += (performance.now() - start) / 1000;
      for (const member of MEMBERS) {
        const { copies, lent, held, strays } = await family.ask(member, 'quiet');
        check(copies === 0, `native code made ${copies} copies in ${member}`);
        check(lent + held + strays === 0, `${member} has ${lent} lent, ${held} held`);
      }
    } finally {
      await family.end();
    }
    this.passed += ROUND;
    return ROUND;
  }

  async finish(): Promise<void> {
    const rate = this.passed / this.seconds;
    console.log(
      `idc-chain: ${rate.toFixed(0)} buffers/s, ${((rate * 65536) / 1e9).toFixed(2)} GB/s, no copy`,
    );
  }
}

export const idcChainSoak: Soak = {
  full: 1_000_000,
  unit: 'buffers',
  start: async () => new ChainRun(),
};
