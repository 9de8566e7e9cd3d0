import { describe, expect, it } from 'vitest';
import { type Moving, Reservations } from '../../core/host/reservations.js';

const silent = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} };
const PATIENCE = 60_000;

function moving(user: string, database = 'shop'): Moving {
  return { identity: { user, database, secret: null }, gathered: user };
}

/** Lets everything go on that can. */
async function settled(): Promise<void> {
  for (let i = 0; i < 10; i++) await Promise.resolve();
}

/** One that passes; knows what it reserved and whether it is through. */
function passing(
  reservations: Reservations,
  { identity }: Moving,
  instance = 'i1',
  options: { fails?: boolean; patience?: number } = {},
) {
  const state = { through: false, failed: false, reserved: [] as (readonly Moving[])[], finish: () => {} };
  const abort = new AbortController();
  const reserve = (sessions: readonly Moving[]): Promise<void> => {
    state.reserved.push(sessions);
    return new Promise((resolve, reject) => {
      state.finish = options.fails ? () => reject(new Error('the connection broke')) : resolve;
    });
  };
  const done = reservations.pass(identity, instance, reserve, options.patience ?? PATIENCE, abort.signal).then(
    () => {
      state.through = true;
    },
    () => {
      state.failed = true;
    },
  );
  return { state, abort, done };
}

describe('after a failover', () => {
  it('nobody waits when no client holds anything', async () => {
    const { state } = passing(new Reservations(silent), moving('anna'));
    await settled();
    expect(state).toMatchObject({ through: true, reserved: [] });
  });

  it('one session of a user reserves for all of them, and the others wait for it', async () => {
    const reservations = new Reservations(silent);
    const [a, b] = [moving('anna'), moving('anna')];
    reservations.add(a);
    reservations.add(b);
    const first = passing(reservations, a);
    const second = passing(reservations, b);
    await settled();
    expect(first.state.reserved).toEqual([[a, b]]);
    expect(second.state).toMatchObject({ through: false, reserved: [] });
    first.state.finish();
    await settled();
    expect(first.state.through && second.state.through).toBe(true);
  });

  it('a newcomer of another user waits too, and one of another database does not', async () => {
    const reservations = new Reservations(silent);
    const a = moving('anna');
    reservations.add(a);
    const newcomer = passing(reservations, moving('bert'));
    const elsewhere = passing(reservations, moving('bert', 'archive'));
    await settled();
    expect([newcomer.state.through, elsewhere.state.through]).toEqual([false, true]);
    const leader = passing(reservations, a);
    await settled();
    leader.state.finish();
    await settled();
    expect(newcomer.state).toMatchObject({ through: true, reserved: [] });
  });

  it('the next session tries when the one that reserves is lost', async () => {
    const reservations = new Reservations(silent);
    const [a, b] = [moving('anna'), moving('anna')];
    reservations.add(a);
    reservations.add(b);
    const first = passing(reservations, a, 'i1', { fails: true });
    const second = passing(reservations, b);
    await settled();
    first.state.finish();
    await settled();
    expect(first.state.failed).toBe(true);
    expect(second.state.reserved).toEqual([[a, b]]);
  });

  it('nobody waits for a session that left', async () => {
    const reservations = new Reservations(silent);
    const a = moving('anna');
    reservations.add(a);
    const newcomer = passing(reservations, moving('bert'));
    await settled();
    reservations.remove(a);
    await settled();
    expect(newcomer.state.through).toBe(true);
  });

  it('what was reserved on one server is reserved again on the next', async () => {
    const reservations = new Reservations(silent);
    const a = moving('anna');
    reservations.add(a);
    const first = passing(reservations, a);
    await settled();
    first.state.finish();
    await settled();
    const again = passing(reservations, a);
    await settled();
    expect(again.state).toMatchObject({ through: true, reserved: [] });
    const next = passing(reservations, a, 'i2');
    await settled();
    expect(next.state.reserved).toEqual([[a]]);
  });

  it('nobody waits twice for a session that does not come', async () => {
    const reservations = new Reservations(silent);
    reservations.add(moving('anna'));
    const first = passing(reservations, moving('bert'), 'i1', { patience: 1 });
    await first.done;
    expect(first.state).toMatchObject({ through: true, reserved: [] });
    const second = passing(reservations, moving('bert'));
    await settled();
    expect(second.state.through).toBe(true);
  });

  it('a wait ends with its session', async () => {
    const reservations = new Reservations(silent);
    reservations.add(moving('anna'));
    const newcomer = passing(reservations, moving('bert'));
    await settled();
    newcomer.abort.abort();
    await newcomer.done;
    expect(newcomer.state.reserved).toEqual([]);
  });
});
