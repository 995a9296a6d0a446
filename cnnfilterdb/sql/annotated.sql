SELECT m.* REPLACE (
    $replaced)
FROM models_stored AS m
LEFT JOIN (
    SELECT model_id, map_from_entries(list({'key': "column", 'value': value})) AS facts
    FROM (SELECT model_id, "column", max(value) AS value FROM annotations GROUP BY ALL) GROUP BY model_id
) AS a USING (model_id)
