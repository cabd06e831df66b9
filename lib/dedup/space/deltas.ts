// Deltas: references that were added or taken and are not in the counts yet, first in first out.
// It grows when it has to, and allocates nothing otherwise.

const DELTAS = 4096;

export class Deltas {
  length = 0;
  /** How many there ever were. */
  pushed = 0;
  private items = new Float64Array(DELTAS);
  private first = 0;

  // hot:begin

  push(delta: number): void {
    if (this.length === this.items.length) this.grow();
    const at = this.first + this.length;
    this.items[at < this.items.length ? at : at - this.items.length] = delta;
    this.length++;
    this.pushed++;
  }

  get head(): number {
    return this.items[this.first]!;
  }

  shift(): void {
    this.first = this.first + 1 === this.items.length ? 0 : this.first + 1;
    this.length--;
  }

  // hot:end

  private grow(): void {
    const old = this.items;
    const fresh = new Float64Array(old.length * 2);
    fresh.set(old.subarray(this.first));
    fresh.set(old.subarray(0, this.first), old.length - this.first);
    this.first = 0;
    this.items = fresh;
  }
}
