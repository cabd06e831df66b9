// Nodes of maps as wholes: put to a place of a tree with all that is below them, shared from then
// on by whoever names them.

import { Magic, Node } from '../format/layout.js';
import type { Tree, Trees } from './trees.js';

/** Puts a node to its place in a tree, which gets one reference more: 0, or a Miss. */
export function putNode(
  trees: Trees,
  tree: Tree,
  leaf: number,
  level: number,
  pbn: number,
): number {
  let parent = -1;
  let place = 0;
  let old = tree.root;
  for (let above = tree.level; above > level; above--) {
    const isThere = old !== 0;
    const frame = isThere ? trees.own(old, Magic.node, above) : trees.make(Magic.node, above);
    if (frame < 0) return frame;
    const now = trees.pages.pbns[frame]!;
    if (now !== old) trees.name(tree, parent, place, now);
    parent = frame;
    place = placeOf(leaf, above);
    old = trees.entry(frame, place);
  }
  trees.space.addRef(pbn);
  if (old !== 0) trees.space.dropRef(old);
  trees.name(tree, parent, place, pbn);
  return 0;
}

/** The node at a place of a tree where there is one; or a Miss. */
export function nodeAt(trees: Trees, tree: Tree, leaf: number, level: number): number {
  let pbn = tree.root;
  for (let above = tree.level; above > level; above--) {
    const frame = trees.node(pbn, above);
    if (frame < 0) return frame;
    pbn = trees.entry(frame, placeOf(leaf, above));
  }
  return pbn;
}

/** What was changed of a node, and below it, is one map's no longer (Trees, invariant 3). */
export function seal(trees: Trees, pbn: number, level: number): void {
  const { pages, space } = trees;
  const frame = pbn === 0 ? -1 : pages.frameOf(pbn);
  // Whatever was changed is here, and so is what was changed above it.
  if (frame < 0 || pages.generations[frame] !== space.generation) return;
  pages.generations[frame] = 0;
  if (level === 0) return;
  for (let e = 0; e < Node.entries; e++) seal(trees, trees.entry(frame, e), level - 1);
}

/** Entry of a node at `level` below which a leaf is. */
export function placeOf(leaf: number, level: number): number {
  return (leaf >>> (Node.shift * (level - 1))) & (Node.entries - 1);
}
