import { serve } from './remote.js';

/** What {@link Host.get} asks for. */
export interface GetRequest {
  readonly url: string;
  readonly timeoutMs: number;
}

/** Script: asks HTTP servers of the host that it runs on, which cannot be reached from outside of its namespace. */
serve({
  get: async ({ url, timeoutMs }: GetRequest) => {
    const response = await fetch(url, { signal: AbortSignal.timeout(timeoutMs) });
    return { status: response.status, body: await response.text() };
  },
});
