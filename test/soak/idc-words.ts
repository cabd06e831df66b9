// What the soaks of domains and their children say to each other, and what buffers hold.

/** A buffer's first words; the rest follows from the sequence number. */
export const enum Word {
  sequence = 0,
  life = 1,
  body = 2,
}

export function fillBody(words: Uint32Array, sequence: number, life: number): void {
  words[Word.sequence] = sequence;
  words[Word.life] = life;
  const seed = Math.imul(sequence + 1, 0x9e3779b1) ^ life;
  for (let i = Word.body; i < words.length; i++) words[i] = seed ^ i;
}

/** What is wrong with a body; '' when nothing is. */
export function bodyFault(words: ArrayLike<number>): string {
  const sequence = words[Word.sequence]!;
  const life = words[Word.life]!;
  const seed = Math.imul(sequence + 1, 0x9e3779b1) ^ life;
  for (let i = Word.body; i < words.length; i++) {
    if (words[i] !== (seed ^ i) >>> 0) return `word ${i} of buffer ${sequence} is another`;
  }
  return '';
}

/** A child's answer to `report`. */
export interface ChildReport {
  /** Everything that must not be. */
  faults: string[];
  sent: number;
  acknowledged: number;
  received: number;
  /** Holds of others in its memory, and loans it has. */
  lent: number;
  held: number;
  strays: number;
  /** Copies that native code made in it. */
  copies: number;
  /** Mapped segments of domains that are gone. */
  orphans: number;
  /** What each open descriptor is, but for segments. */
  descriptors: string[];
  /** Milliseconds that the question took to become true (`quiet`, `forgotten`). */
  ms: number;
}

export interface Ready {
  ready: true;
  slot: number;
}
