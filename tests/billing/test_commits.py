"""An answer of 2xx means that it is written: a commit that fails, or a database that is away, never looks done."""

from typing import Any

# Refuses at the very end of a transaction, when the endpoint has long returned.
REFUSE_COMMITS = """
CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'refused at commit'; END $$;
CREATE CONSTRAINT TRIGGER refuse AFTER INSERT OR UPDATE ON billing.customer
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.refuse();
CREATE CONSTRAINT TRIGGER refuse AFTER INSERT OR UPDATE ON billing.api_key
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.refuse();
"""
ALLOW_COMMITS = "DROP TRIGGER refuse ON billing.customer; DROP TRIGGER refuse ON billing.api_key;"


def test_a_commit_that_fails_is_never_answered_as_done(own_platform: Any) -> None:
    http = own_platform.http()
    http.post("/admin/customers", json={"id": "before", "name": "B", "plan": "solo"})
    key = http.post("/admin/customers/before/keys", json={}).json()
    own_platform.sql(REFUSE_COMMITS)
    body = {"id": "after", "name": "A", "plan": "solo"}
    answers = [
        http.post("/admin/customers", json=body),
        http.post("/admin/customers/before/keys", json={}),
        http.delete(f"/admin/keys/{key['id']}"),
    ]
    assert [answer.status_code for answer in answers] == [500] * 3
    assert all(answer.json()["error"]["type"] == "server_error" for answer in answers)
    assert all("refused at commit" not in answer.text for answer in answers)

    own_platform.sql(ALLOW_COMMITS)
    assert http.get("/admin/customers/after").status_code == 404
    [listed] = http.get("/admin/customers/before/keys").json()["data"]
    assert (listed["id"], listed["status"]) == (key["id"], "active")
    assert http.post("/admin/customers", json=body).status_code == 201  # takes up the account that is there


def test_while_the_database_is_away_billing_says_try_again_and_comes_back_by_itself(
    own_platform: Any,
) -> None:
    http = own_platform.http()
    assert http.get("/readyz").status_code == 200
    own_platform.sql("ALTER ROLE darktree_billing CONNECTION LIMIT 0")
    try:
        while own_platform.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE usename = 'darktree_billing' AND datname = current_database()"
        ):
            pass
        answers = [http.get("/admin/customers") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [503] * 3
        assert answers[-1].headers["retry-after"] == "1"
        assert http.get("/readyz").status_code == 503
        assert http.get("/healthz").status_code == 200
    finally:
        own_platform.sql("ALTER ROLE darktree_billing CONNECTION LIMIT -1")
    assert http.get("/admin/customers").status_code == 200
    assert http.get("/readyz").status_code == 200
