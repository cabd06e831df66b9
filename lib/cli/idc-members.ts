// What `idc ls` and `idc top` have in common: this process joins the hub for a moment, and asks
// each member for its report.

import { PenstockError } from '../errors.js';
import {
  joinDomain,
  ReportReader,
  type Domain,
  type DomainReport,
  type MemberInfo,
} from '../idc/index.js';

/** Members that do not answer in this time are stopped, or busy. */
const ANSWER_MS = 1000;
const LINKS_MS = 1000;

export interface AskedMember extends MemberInfo {
  /** Why there is no report, or `answered`. */
  readonly answer: 'answered' | 'silent' | 'not shared' | 'no report';
  readonly report: DomainReport | null;
}

export class Members {
  readonly domain: Domain;
  private readonly reader: ReportReader;

  private constructor(domain: Domain) {
    this.domain = domain;
    this.reader = new ReportReader(domain);
  }

  /** `name`: its own is `idc-NAME-PID`. Errors: those of joinDomain. */
  static async join(socket: string, name: string): Promise<Members> {
    return new Members(await joinDomain(socket, { name: `idc-${name}-${process.pid}` }));
  }

  /** Waits until there is a link with each of `members`, or there will be none. */
  async linked(members: readonly MemberInfo[]): Promise<void> {
    const names = members.filter(({ state }) => state === 'member').map(({ name }) => name);
    await Promise.allSettled(names.map((name) => this.domain.linkTo(name, LINKS_MS)));
  }

  /** Asks all at once. */
  async ask(members: readonly MemberInfo[]): Promise<AskedMember[]> {
    const others = members.filter(({ slot }) => slot !== this.domain.slot);
    return Promise.all(others.map((member) => this.askOne(member)));
  }

  close(): void {
    this.domain.close();
  }

  private async askOne(member: MemberInfo): Promise<AskedMember> {
    const link = this.domain.links.get(member.slot);
    if (link?.peer.generation !== member.generation) {
      return { ...member, answer: 'not shared', report: null };
    }
    // It has not even said hello.
    if (!link.isReady) return { ...member, answer: 'silent', report: null };
    try {
      const report = await this.reader.ask(member.name, ANSWER_MS);
      return { ...member, answer: report === null ? 'silent' : 'answered', report };
    } catch (error) {
      if (!(error instanceof PenstockError)) throw error;
      return { ...member, answer: 'no report', report: null };
    }
  }
}
