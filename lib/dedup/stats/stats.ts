// What a pool says of itself, as `vdostats` users know it, and more.

import type { Engine } from '../engine.js';
import type { LatencyStats } from './latency.js';
import { Group, Page } from '../format/layout.js';
import type { Llrrm } from '../llrrm/llrrm.js';
import type { LlrrmState } from '../llrrm/llrrm-session.js';
import type { SpaceState, SpaceWatch } from '../space/space-watch.js';
import { Stage, type StageClock } from './stage-clock.js';
import type { SuperblockFacts } from '../format/superblock.js';
import { ticksMs } from './ticks.js';

const MIB_BLOCKS = 2 ** 20 / Page.bytes;

export interface PoolStats {
  readonly schema: 'penstock.pool-stats/1';
  /** How long the pool has been open. */
  readonly open_ms: number;
  /** Blocks of 4096 bytes. */
  readonly block_size: number;
  readonly physical_blocks: number;
  /** Blocks that volumes map. */
  readonly logical_blocks_used: number;
  /** Blocks with a reference, nodes of maps included. */
  readonly data_blocks_used: number;
  /** Blocks of space pages, journal and superblocks. */
  readonly overhead_blocks_used: number;
  /** What a volume may take to which nothing is promised. */
  readonly free_blocks: number;
  /** Promised to volumes, and not theirs yet. */
  readonly reserved_blocks: number;
  readonly space: SpaceState;
  readonly used_percent: number;
  /** 100 · (1 − data / logical); 0 when nothing is mapped. */
  readonly saving_percent: number;
  readonly volumes: number;
  /** Blocks that took no room since the pool was opened, by why. */
  readonly savings: {
    zero: number;
    /** In runs of THN blocks and more, and in shorter ones, for low-latency memory. */
    run: number;
    short: number;
    /** What snapshots and clones mapped when they were made. */
    copied: number;
  };
  /** Since the pool was opened. */
  readonly written: {
    fresh: number;
    zero: number;
    /** Shared with stored blocks; `short`: of them those of runs shorter than THN. */
    same: number;
    short: number;
    unequal: number;
    /** Runs by length: 1, 2–3, 4–7, … 256 blocks. */
    run_lengths: number[];
  };
  /** What volumes were asked since the pool was opened, in requests and blocks. */
  readonly reads: {
    requests: number;
    blocks: number;
    /** Requests to the data device for them, and how many that makes for each MiB read. */
    device_reads: number;
    device_reads_per_mib: number;
    /** Runs that low-latency memory served, and reads of the data device that it spared. */
    llrrm_reads: number;
    device_reads_saved: number;
    /** Of a sample, by what served it. */
    latency: { device: LatencyStats; llrrm: LatencyStats | null };
  };
  readonly writes: { requests: number; blocks: number };
  /** Low-latency memory, when it is used: slots are blocks. */
  readonly llrrm: {
    slots: number;
    used: number;
    promoted: number;
    overflowed: number;
    evicted: number;
    freed: number;
    /** Reads that it served, their blocks, and short reads that it could not serve. */
    reads: number;
    blocks: number;
    misses: number;
    /** Comparisons of writes that it served. */
    compared: number;
    hit_rate: number;
    errors: number;
    damaged: number;
  } | null;
  /** Whether it is used, and why it is not although the pool has one. */
  readonly llrrm_state: LlrrmState;
  readonly llrrm_why: string;
  /** Of pools with data checksums: blocks that were checked, and that were not what was written. */
  readonly checksums: { blocks: number; damaged: number } | null;
  /** Of `probes` those that were there and not; blocks that were another one by then. */
  readonly index: {
    entries: number;
    probes: number;
    hits: number;
    missed: number;
    stale: number;
    rate: number;
  };
  /** What stages of writing took of the processor. */
  readonly stages: {
    hash_ms: number;
    look_up_ms: number;
    compare_ms: number;
    enter_ms: number;
    journal_ms: number;
    checkpoint_ms: number;
  };
  readonly checkpoints: { done: number; pages_written: number; begin_ms_max: number };
  readonly journal: { entries: number; fill: number };
  /** Pages of metadata in memory, of so many `frames`. */
  readonly cache: { hits: number; misses: number; dirty: number; frames: number };
  readonly device: { reads: number; writes: number; pages_read: number; pages_written: number };
}

export function poolStats(
  engine: Engine,
  facts: SuperblockFacts,
  watch: SpaceWatch,
  llrrm: { readonly state: LlrrmState; readonly why: string },
): PoolStats {
  const { space, catalogue, planner, index, thn, checkpoint, journal, pages, io, checks } =
    engine.parts;
  const { clock, traffic } = engine.parts;
  const logical = catalogue.list.reduce((sum, { mapped }) => sum + mapped, 0);
  const groups = facts.pages / Group.pages;
  return {
    schema: 'penstock.pool-stats/1',
    open_ms: Math.round(performance.now() - traffic.sinceMs),
    block_size: Page.bytes,
    physical_blocks: facts.pages,
    logical_blocks_used: logical,
    data_blocks_used: space.used,
    overhead_blocks_used: facts.pages - (groups - facts.firstGroup) * Group.counts,
    free_blocks: Math.max(0, engine.parts.allocator.room - catalogue.promised(null)),
    reserved_blocks: catalogue.promised(null),
    space: watch.state,
    used_percent: 100 * watch.used,
    saving_percent: logical === 0 ? 0 : Math.max(0, 100 * (1 - space.used / logical)),
    volumes: catalogue.list.length,
    savings: {
      zero: planner.zero,
      run: planner.same - planner.short,
      short: planner.short,
      copied: engine.checkpoints.copied,
    },
    written: {
      fresh: planner.fresh,
      zero: planner.zero,
      same: planner.same,
      short: planner.short,
      unequal: planner.unequal,
      run_lengths: [...planner.runLengths],
    },
    checksums: checks === null ? null : { blocks: checks.blocks, damaged: checks.damaged },
    reads: readStats(engine),
    writes: { requests: traffic.writes, blocks: traffic.blocksWritten },
    llrrm: engine.llrrm === null ? null : llrrmStats(engine.llrrm),
    llrrm_state: llrrm.state,
    llrrm_why: llrrm.why,
    index: {
      entries: index.entries,
      probes: index.probes,
      hits: index.hits,
      missed: index.probes - index.hits,
      stale: thn.stale,
      rate: index.rate,
    },
    stages: stageStats(clock),
    checkpoints: {
      done: checkpoint.done,
      pages_written: checkpoint.pagesWritten,
      begin_ms_max: checkpoint.beginMsMax,
    },
    journal: { entries: journal.entries, fill: journal.needed / journal.capacity },
    cache: {
      hits: pages.hits,
      misses: pages.misses,
      dirty: pages.dirtyCount,
      frames: pages.frames,
    },
    device: {
      reads: io.reads,
      writes: io.writes,
      pages_read: io.pagesRead,
      pages_written: io.pagesWritten,
    },
  };
}

function readStats({ traffic, llrrm }: Engine): PoolStats['reads'] {
  const { reads, blocksRead } = traffic;
  const redone = llrrm?.redone ?? 0;
  const deviceReads = traffic.deviceReads + redone;
  const spared = llrrm === null ? 0 : llrrm.reads + llrrm.compared - redone;
  return {
    requests: reads,
    blocks: blocksRead,
    device_reads: deviceReads,
    device_reads_per_mib: blocksRead === 0 ? 0 : (deviceReads * MIB_BLOCKS) / blocksRead,
    llrrm_reads: llrrm?.reads ?? 0,
    device_reads_saved: Math.max(0, spared),
    latency: {
      device: traffic.device.stats(),
      llrrm: llrrm === null ? null : traffic.llrrm.stats(),
    },
  };
}

function stageStats({ ticks }: StageClock): PoolStats['stages'] {
  const ms = (stage: Stage): number => Math.round(ticksMs(ticks[stage]!) * 1000) / 1000;
  return {
    hash_ms: ms(Stage.hash),
    look_up_ms: ms(Stage.lookUp),
    compare_ms: ms(Stage.compare),
    enter_ms: ms(Stage.enter),
    journal_ms: ms(Stage.journal),
    checkpoint_ms: ms(Stage.checkpoint),
  };
}

function llrrmStats(llrrm: Llrrm): NonNullable<PoolStats['llrrm']> {
  const { table, copier, reads, blocks, misses, compared, errors, damaged } = llrrm;
  const { slots, valid, evicted, freed } = table;
  const { promoted, overflowed } = copier;
  const asked = reads + misses;
  return {
    ...{ slots, used: valid, promoted, overflowed, evicted, freed, reads, blocks, misses },
    compared,
    hit_rate: asked === 0 ? 0 : reads / asked,
    ...{ errors, damaged },
  };
}
