import { expect, it } from 'vitest';
import { runDemo } from '../../core/host/demo/index.js';
import { DEMO_KEYS } from '../kit/demo.js';

it('kills a SQL Server of the tests under traffic, and every acknowledged transaction is there once', async () => {
  const texts: string[] = [];
  const out = (text: string) => texts.push(text);
  const ok = await runDemo({ rounds: 1, clients: 6, codec: 'tds', pair: false, json: true, out });
  const result = JSON.parse(texts.join(''));
  expect(Object.keys(result)).toEqual(DEMO_KEYS);
  expect(result).toMatchObject({ rounds: 1, clients: 6, clientErrors: 0, duplicates: 0, lost: 0, ok: true });
  expect(result.transactions).toBeGreaterThan(6);
  expect(result.replays).toBeGreaterThan(0);
  expect(ok).toBe(true);
}, 120_000);
