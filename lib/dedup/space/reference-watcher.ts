// Who is told of references to blocks, as counts change.

export interface ReferenceWatcher {
  /** A block of data has got a reference, and has this many now. */
  referred(pbn: number, references: number): void;
  /** A block, or a node, has lost its last one. */
  freed(pbn: number): void;
}
