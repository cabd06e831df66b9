// MSI-X as the driver sees it: an eventfd per enabled vector, and vectors that are masked (PCI
// Local Bus 3.0, section 6.8.3.4), whose signal stays pending until they are not.

import { native } from '../../../lib/native.js';
import { Control, type Shared, VECTOR_WORDS } from './shared.js';

export class Interrupts {
  private readonly shared: Shared;
  private hasPending = false;

  constructor(shared: Shared) {
    this.shared = shared;
  }

  signal(vector: number): void {
    const { control, vectors } = this.shared;
    if (vector >= control[Control.vectors]!) return;
    if ((vectors[vector * VECTOR_WORDS + 3]! & 1) !== 0) {
      vectors[this.pendingAt(vector)] = 1;
      this.hasPending = true;
      return;
    }
    native.eventfdSignal(control[Control.eventFds + vector]!);
  }

  /** Signals what was pending and is no longer masked. */
  look(): void {
    if (!this.hasPending) return;
    this.hasPending = false;
    for (let vector = 0; vector < this.shared.parts.vectorsMax; vector++) {
      const at = this.pendingAt(vector);
      if (this.shared.vectors[at] === 0) continue;
      this.shared.vectors[at] = 0;
      this.signal(vector);
    }
  }

  private pendingAt(vector: number): number {
    return Math.max(1, this.shared.parts.vectorsMax) * VECTOR_WORDS + vector;
  }
}
