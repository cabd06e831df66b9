// What is left of a link when its other end is gone.

import { describe, expect, it } from 'vitest';
import { startAll, startMember } from './actors.js';

describe('a domain that leaves', () => {
  it('has its last releases taken before the ring for them is memory for others', async () => {
    const { path, a, b } = await startAll('a', 'b');
    await b.run(({ domain, messages }) => {
      domain.listen('data', (channel) => {
        void (async () => {
          for await (const message of channel) messages.push(message);
        })();
      });
    });
    await a.run(async ({ domain, channels }) => {
      const channel = (channels['data'] = await domain.connect('b', 'data'));
      for (let i = 0; i < 8; i++) await channel.send(domain.alloc(512));
    });
    // Released and gone in one step: the releases are there when the end is seen, and not before.
    await b.run(async ({ domain, messages, until }) => {
      await until('messages', () => messages.length === 8);
      for (const message of messages) message.release();
      domain.close();
    });
    await a.run(({ domain, until }) => until('its end', () => domain.links.size === 0));
    // Poison (PENSTOCK_POISON=1) tells when the next link gets memory that was written meanwhile.
    await startMember(path, 'c');
    const { lent, peers, connected } = await a.run(async ({ domain, until }) => {
      await until('a link', () => domain.peers.length === 1);
      const { lent } = domain.loans();
      return { lent, peers: domain.peers.map(({ name }) => name), connected: domain.hubConnected };
    });
    expect({ lent, peers, connected }).toEqual({ lent: [], peers: ['c'], connected: true });
  });
});
