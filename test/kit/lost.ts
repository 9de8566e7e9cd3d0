import { expect } from 'vitest';
import { type DatabaseError, errorOf } from './front.js';
import type { PgClient } from './gateway.js';

/** The error that tells what a session lost; its message names all of these. */
export const lost = (...names: string[]) => ({
  code: '55000',
  detail: expect.stringContaining('OUTLIVE_STATE_LOST'),
  message: expect.stringMatching(new RegExp(['lost: ', ...names].map((name) => `(?=.*${name})`).join(''))),
});

/** The error comes once, and what follows works; there is a table t (id, v). */
export async function worksAgain(client: PgClient): Promise<void> {
  expect((await client.query('select 1 as one')).rows).toEqual([{ one: 1 }]);
  await client.query('begin');
  await client.query("insert into t values (1, 'after')");
  await client.query('commit');
  expect(client.errors).toEqual([]);
}

/** The client's next statement after a failover, wherever the client stands. */
export async function next(client: PgClient): Promise<DatabaseError> {
  return await errorOf(client.query('select 2'));
}
