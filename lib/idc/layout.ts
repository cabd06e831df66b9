// What lies in shared memory between two domains: the half of a channel, and its records.
//
// A channel is two halves, one in the memory of each side, which that side alone writes. A half has
// a header of 256 bytes, one cache line for each word that changes at a time of its own, and then
// the ring of the records that its side sends.
//
// A record is 32 bytes, as HPDI's. Bit 31 of its first word is the lap bit: 1 on the ring's even
// laps, 0 on its odd ones. A record is there when its lap bit is the one of its index, so that a
// reader needs one cache line per record and no index of the writer; the writer stores the first
// word last. The index up to which a side has read stands in its own half.

import { layout, type Layout } from '../wire/index.js';

/** Word indices of a half's header. */
export const enum Half {
  magic = 0,
  version = 1,
  features = 2,
  /** Records of the ring: a power of two from 2 on. */
  size = 3,
  /** Differs from that of the half which was here before. */
  serial = 4,
  /** Index up to which this side has taken the other side's records; runs free. */
  consumed = 16,
  /** Devices: index up to which this side has done with what the records lent. */
  done = 17,
  /** 0 while this side is awake; else a number that no sleep before had. */
  sleeping = 32,
  /** The number of the last sleep, for whoever uses this half next. */
  sleeps = 33,
  /** An `End`. */
  ended = 48,
  /** Records sent and received so far, and wakes; for those who watch. Behind by some. */
  sent = 49,
  received = 50,
  wakes = 51,
  words = 64,
}

/** What `ended` says of a side. */
export const enum End {
  open = 0,
  /** It sends nothing any more; it may still read what it was sent, and work at it. */
  sent = 1,
  /** It is done with all that it was sent, too: nothing of the channel is looked at any more. */
  closed = 2,
}

export const HALF_MAGIC = 0x43444950; // 'PIDC'
export const HALF_VERSION = 1;
export const HALF_BYTES = 256;
export const RECORD_BYTES = 32;

/** Words of a record, and the lap bit in its first. */
export const enum Rec {
  op = 0,
  words = 8,
  shift = 3,
}

/** Operations of records that are not HPDI's (whose numbers are below 32). */
export const enum IdcOp {
  /** A message: a loan of `bytes` bytes at an address. */
  MESSAGE = 32,
  /** An answer to a message, with the asker's tag. */
  REPLY = 33,
  /** Loans: a hold given back. */
  RELEASE = 34,
  /** Loans: the sender's hold goes over to another domain. */
  TRANSFER = 35,
  /** Loans: how many holds by the word of a dead domain the sender still has (LoanRec.to). */
  AUDITED = 36,
  /** Devices: a completion. */
  COMPLETION = 37,
  /** Devices: a loan (READ_LOAN) given back. */
  LOAN_BACK = 38,
  /** Devices: what the device is has changed. */
  CHANGED = 39,
}

/** A MESSAGE or REPLY. */
export const enum Msg {
  op = 0,
  /** The asker's number of a request, or 0: no reply is expected. */
  tag = 1,
  bytes = 2,
  /** The sender's own. */
  aux = 3,
  aux2 = 4,
  /** Generation of the domain that owns the memory: an address outlives its domain. */
  ownerGeneration = 5,
  addressLo = 6,
  /** Address, high word (12 bits) | generation of the buffer << 12. */
  addressHi = 7,
}

/** A RELEASE, TRANSFER or AUDITED. */
export const enum LoanRec {
  op = 0,
  /** The domain from which the hold came, by whose word the owner knows of it. */
  via = 1,
  /** TRANSFER: the domain that gets the hold. AUDITED: the number of holds. */
  to = 2,
  /** TRANSFER: its generation. */
  toGeneration = 3,
  reserved = 4,
  reserved2 = 5,
  addressLo = 6,
  addressHi = 7,
}

/** A COMPLETION: of a request that went the other way, an HPDI record with the tag. */
export const enum Done {
  op = 0,
  tag = 1,
  status = 2,
  /** READ, READ_LOAN: the buffer's loan words; else the operation's result. */
  resultLo = 3,
  resultHi = 4,
  /** READ_LOAN: the lender's number of the buffer. */
  buffer = 5,
}

/** A LOAN_BACK. */
export const enum Back {
  op = 0,
  /** The lender's number of the buffer. */
  buffer = 1,
  addressLo = 6,
  addressHi = 7,
}

/** The cold form of a half's header. */
export const HALF_LAYOUT: Layout = layout('half of a channel', HALF_BYTES, 'lib/idc/layout.ts', [
  { name: 'magic', offset: 0, bytes: 4, meaning: "'PIDC'" },
  { name: 'version', offset: 4, bytes: 4, meaning: 'of this layout' },
  { name: 'features', offset: 8, bytes: 4, meaning: 'none yet' },
  { name: 'size', offset: 12, bytes: 4, meaning: 'records of the ring' },
  { name: 'serial', offset: 16, bytes: 4, meaning: 'differs from the half that was here before' },
  { name: 'consumed', offset: 64, bytes: 4, meaning: "index of the other's records taken" },
  { name: 'done', offset: 68, bytes: 4, meaning: 'devices: index of records done with' },
  { name: 'sleeping', offset: 128, bytes: 4, meaning: '0 awake; else the number of the sleep' },
  { name: 'sleeps', offset: 132, bytes: 4, meaning: 'the number of the last sleep' },
  { name: 'ended', offset: 192, bytes: 4, meaning: '1: nothing more is sent; 2: nor read' },
  { name: 'sent', offset: 196, bytes: 4, meaning: 'records sent' },
  { name: 'received', offset: 200, bytes: 4, meaning: 'records received' },
  { name: 'wakes', offset: 204, bytes: 4, meaning: 'times the other side was woken' },
]);
