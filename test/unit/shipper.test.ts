import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { RECORD } from '../../core/cluster/records.js';
import type { Subject } from '../../core/host/pair/replica.js';
import { Shipper } from '../../core/host/pair/shipper.js';
import { OPENING, recordsTo } from '../kit/told.js';

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setInterval', 'clearInterval'] });
});
afterEach(() => {
  vi.useRealTimers();
});

/** A session whose client has sent nothing yet, and what was done with its acknowledgements. */
function scene() {
  let position = 0;
  let safe = 0;
  /** Up to where the client was told that its bytes have come. */
  let told = 0;
  const shipper = new Shipper(
    recordsTo(() => position++),
    false,
  );
  const subject: Subject = {
    cluster: 'c',
    database: 'd',
    durable: true,
    outstanding: () => 0,
    opening: () => OPENING,
    snapshot: () => ({ capsule: {}, received: 0, origin: null }),
    queued: () => 0,
    unheard: () => [],
    descriptor: () => -1,
    written: 0,
    facts: () => undefined,
    gate: () => ({
      promised: 0,
      safe: (bytes) => {
        safe = bytes;
      },
      prod: () => {
        told = safe;
      },
      open: () => {},
    }),
    deliver: () => {},
    eased: () => {},
    proceed: () => {},
  };
  const replica = shipper.replicate(subject);
  shipper.linkUp();
  replica.done();
  shipper.acked(position);
  return {
    shipper,
    replica,
    get told() {
      return told;
    },
    /** The client says so much, and the session nothing. */
    hear(bytes: number): void {
      replica.input(RECORD.client, new Uint8Array(bytes));
      replica.done();
    },
    /** The peer holds everything. */
    confirm(): void {
      shipper.acked(position);
    },
  };
}

it.each([0, 10, 1000])(
  'tells a client that waits what is safe, however late the peer holds it (after %i ms)',
  (late) => {
    const one = scene();
    one.hear(3);
    vi.advanceTimersByTime(late);
    expect(one.told).toBe(0);
    one.confirm();
    vi.advanceTimersByTime(100);
    expect(one.told).toBe(3);
    one.hear(4);
    vi.advanceTimersByTime(late);
    one.confirm();
    vi.advanceTimersByTime(100);
    expect(one.told).toBe(7);
    one.shipper.stop();
  },
);
