// Memory ordering points (x86-64: the only reordering is store→load).
//
// `publish` is a plain store, named so that a reader sees where a record becomes visible to the
// other side. `fence` stands between publishing and reading the other side's sleep or event word;
// once per batch, never per record. x86 keeps stores in order and V8 does not move a typed-array
// store over another, so that records are visible before the index that publishes them.

const fenceWord = new Int32Array(new SharedArrayBuffer(4));

/** Makes `value` visible at `words[index]` after everything stored before. A plain store. */
export function publish(words: Uint32Array, index: number, value: number): void {
  words[index] = value;
}

/** Full barrier: one atomic exchange on a private word. */
export function fence(): void {
  Atomics.exchange(fenceWord, 0, 0);
}

/**
 * A store to a device register, after all that was stored to memory before it. Never Atomics on a
 * BAR.
 */
export function ringDoorbell(registers: Uint32Array, index: number, value: number): void {
  registers[index] = value;
}
