// Deaths of domains: a random member of a chain of three, or the hub, is killed at a random moment
// under verified load, round after round; now and then one is stopped for a while first.
//
// After each: the survivors hold nothing of the dead one, and nobody holds anything by it; once it
// is back, work goes on, and everything that is lent comes home when the source pauses. Children
// check that no buffer changes while it is held and that no acknowledged one is lost or comes
// twice.

import { check, sleep, type Random, type Soak, type SoakRun } from './harness.js';
import { Family, MEMBERS, type Member, type Role } from './idc-family.js';

/** Descriptors that a survivor may have more than at the first look. */
const DESCRIPTORS_MORE = 8;
const ALIVE_MS = 250;

class KillRun implements SoakRun {
  private readonly random: Random;
  private readonly family = new Family();
  /** First look at each life. */
  private readonly descriptors = new Map<Role, string[]>();
  private readonly times: number[] = [];
  private acknowledged = 0;

  constructor(random: Random) {
    this.random = random;
  }

  async begin(): Promise<this> {
    try {
      for (const role of ['hub', ...MEMBERS] as const) await this.family.start(role);
      await this.settle();
      return this;
    } catch (error) {
      await this.family.end();
      throw error;
    }
  }

  async round(index: number): Promise<number> {
    const { random } = this;
    const victim = random.pick<Role>(['hub', ...MEMBERS]);
    const stopped = random.chance(0.2) ? random.pick<Member>(MEMBERS) : null;
    try {
      await sleep(random.below(ALIVE_MS));
      if (stopped !== null) await this.pauseProcess(stopped);
      await this.death(victim);
      this.descriptors.delete(victim);
      await this.settle();
    } catch (cause) {
      const also = stopped === null ? '' : `, ${stopped} stopped`;
      throw new Error(`round ${index}: ${victim} killed${also}`, { cause });
    }
    if (index % 100 === 99) this.tell();
    return 1;
  }

  async finish(): Promise<void> {
    await this.family.end();
    this.tell();
  }

  private async pauseProcess(role: Member): Promise<void> {
    this.family.signal(role, 'SIGSTOP');
    await sleep(this.random.below(100));
    this.family.signal(role, 'SIGCONT');
  }

  private async death(victim: Role): Promise<void> {
    const { family } = this;
    const slot = family.slotOf(victim);
    await family.kill(victim);
    if (victim !== 'hub') {
      const survivors = MEMBERS.filter((member) => member !== victim);
      const reports = await Promise.all(
        survivors.map((member) => family.ask(member, 'forgotten', slot)),
      );
      for (const [i, { ms }] of reports.entries()) {
        check(ms < 9_000, `${survivors[i]} does not forget ${victim}`);
        this.times.push(ms);
      }
    } else {
      // Without a hub all goes on.
      const before = await family.ask('producer', 'report');
      const until = performance.now() + 10_000;
      for (;;) {
        await sleep(10);
        if ((await family.ask('producer', 'report')).acknowledged > before.acknowledged) break;
        check(performance.now() < until, 'nothing goes on without a hub');
      }
    }
    await family.start(victim);
  }

  /** The source pauses: all that is out comes home. Then it goes on. */
  private async settle(): Promise<void> {
    const { family } = this;
    const until = performance.now() + 20_000;
    // Whoever has come back must have got something first.
    for (;;) {
      const { acknowledged } = await family.ask('producer', 'report');
      if (acknowledged > 0) break;
      check(performance.now() < until, 'nothing is acknowledged any more');
      await sleep(5);
    }
    await family.ask('producer', 'pause');
    for (const member of MEMBERS) {
      const { ms, lent, held, descriptors, strays, orphans } = await family.ask(member, 'quiet');
      check(ms < 9_000, `${member} has ${lent} lent and ${held} held in the end`);
      check(strays === 0, `${member} was given back ${strays} that nobody has`);
      check(orphans === 0, `${member} has ${orphans} segments of domains that are gone`);
      const first = this.descriptors.get(member) ?? descriptors;
      this.descriptors.set(member, first);
      const more = descriptors.length - first.length;
      const what = more > DESCRIPTORS_MORE ? counted(descriptors, first) : '';
      check(what === '', `${member} has ${what}`);
    }
    const { acknowledged } = await family.ask('producer', 'go');
    this.acknowledged += acknowledged;
  }

  private tell(): void {
    const sorted = [...this.times].sort((a, b) => a - b);
    if (sorted.length === 0) return;
    const at = (share: number): string =>
      sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))]!.toFixed(0);
    const late = sorted.filter((ms) => ms > 100).length;
    console.log(
      `idc-kill: the dead are forgotten in ${at(0.5)} ms (median), ${at(0.99)} (p99), ` +
        `${at(1)} at most; ${late} of ${sorted.length} in more than 100`,
    );
  }
}

/** Kinds of descriptors of which there are more than before. */
function counted(now: readonly string[], before: readonly string[]): string {
  const count = (list: readonly string[], kind: string): number =>
    list.filter((one) => one === kind).length;
  return [...new Set(now)]
    .map((kind) => `${count(now, kind) - count(before, kind)} more ${kind}`)
    .filter((text) => !text.startsWith('0') && !text.startsWith('-'))
    .join(', ');
}

export const idcKillSoak: Soak = {
  full: 2000,
  unit: 'rounds',
  start: (random) => new KillRun(random).begin(),
};
